"""What collapse-onnx leaves as it is, and what it then says: the smallest graph for each reason."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from onnx_layers import add_conv, collapse, straight, weight
from random_onnx import Build

FED = "{} and may be fed; take them off the inputs to collapse"


def test_constants_of_a_matrix_product_without_bias_stay(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(1, 2)), [0, 0, 0.5, 0])
    x = b.one("Transpose", [x], perm=[0, 2, 3, 1])
    last = b.one("MatMul", [x, b.constant(weight(4, 5)[:, :, 0, 0], "w")])
    _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 4, 4)))
    assert shapes["w_0"][0] == 3


def test_one_channel_stays_where_an_operator_needs_one(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(0, 1, 2, 3)))
    last = add_conv(b, x, weight(2, 4), [0.5, 0.25])
    _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert (shapes["w_0"][0], shapes["w_1"]) == (1, (2, 1, 1, 1))


def test_an_unknown_operator_keeps_its_channels_and_says_so(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(0, 1)))
    x = b.one("LRN", [x], size=3)
    last = add_conv(b, x, weight(2, 4))
    report, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert shapes["w_0"][0] == 4
    assert not report.changed
    assert "LRN" in report.pinned[0]


def test_what_a_subgraph_takes_from_outside_stays(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(0, 1)))
    total = b.one("ReduceSum", ["x"], keepdims=0)
    positive = b.one("Greater", [total, b.constant(np.array(0, np.float32))])
    branches = {}
    for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg")):
        node = helper.make_node(kind, [x], [f"{name}_out"])
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [out])
    y = b.one("If", [positive], **branches)
    last = add_conv(b, y, weight(2, 4))
    report, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert shapes["w_0"][0] == 4
    assert "If" in report.pinned[0]


def test_names_metadata_opset_foreign_domains_and_free_sides_stay(tmp_path: Path) -> None:
    b = straight(None, 3, 1)
    b.nodes.append(helper.make_node("Gelu", [b.last], ["y"], "own", domain="com.microsoft"))
    model = b.model(["y"], x=(3, "h", "w"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    helper.set_model_props(model, {"author": "somebody"})
    model.graph.input[0].doc_string = "pixels"
    report, made, _ = collapse(tmp_path, model)
    assert report.channels == (7, 5)
    assert {p.key: p.value for p in made.metadata_props} == {"author": "somebody"}
    assert {o.domain: o.version for o in made.opset_import} == {"": 17, "com.microsoft": 1}
    assert made.graph.input[0].doc_string == "pixels"
    sizes = [d.dim_param or d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim]
    assert (sizes, made.graph.output[0].name) == (["n", 3, "h", "w"], "y")
    assert [one["x"][0] for one in report.inputs] == [2, 3]


def test_a_channel_count_that_is_an_output_stays(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(1,)))
    shape, last = b.one("Shape", [x]), add_conv(b, x, weight(2, 4))
    model = b.model([last, shape], x=(3, 8, 8))
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    report, _, shapes = collapse(tmp_path, model)
    assert shapes["w_0"][0] == 4
    assert "is given out" in report.pinned[0]


def test_a_slice_whose_bounds_are_fed_keeps_its_channels(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(1,)))
    ends, axes = b.one("Add", ["start", b.constant(np.array([2]))]), b.constant(np.array([1]))
    last = add_conv(b, b.one("Slice", [x, "start", ends, axes]), weight(2, 2))
    model = b.model([last], x=(3, 8, 8), start=())
    model.graph.input[1].CopyFrom(helper.make_tensor_value_info("start", TensorProto.INT64, [1]))
    _, _, shapes = collapse(tmp_path, model)
    assert shapes["w_0"][0] == 4


def test_a_gemm_that_adds_a_number_an_image_is_left_alone(tmp_path: Path) -> None:
    b = Build(0)
    x = b.one("Gemm", ["x", b.constant(weight(3, 4, zero=(1,))[:, :, 0, 0], "w")])
    rows = b.constant(np.arange(5, dtype=np.float32)[:, None], "rows")
    last = b.one("Gemm", [x, b.constant(weight(4, 5)[:, :, 0, 0], "w"), rows])
    model = b.model([last], batch=5, x=(3,))
    report, _, _ = collapse(tmp_path, model)
    assert not report.changed


def test_weights_that_may_be_fed_are_no_constants(tmp_path: Path) -> None:
    for version, left in ((3, 4), (8, 5)):
        b = straight(None, 3, 1, first_zero=(1,))
        model = b.model([b.last], x=(3, 8, 8))
        model.ir_version = version
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in model.graph.initializer
        )
        report, made, shapes = collapse(tmp_path, model)
        assert shapes["w_0"][0] == left
        assert [i.name for i in made.graph.input] == ["x", "w_0", "w_1"]
        assert report.channels == (7, left + 2)
        assert report.pinned == (
            () if version == 3 else (FED.format("2 weights are graph inputs"),)
        )


def test_a_single_weight_that_may_be_fed_is_named(tmp_path: Path) -> None:
    b = straight(None, 3, 1, first_zero=(1,))
    model = b.model([b.last], x=(3, 8, 8))
    model.graph.input.append(helper.make_tensor_value_info("w_0", 1, [5, 3, 1, 1]))
    report, _, _ = collapse(tmp_path, model)
    assert report.pinned[0] == FED.format("1 weight is a graph input")


def test_operators_on_whole_numbers_are_named(tmp_path: Path) -> None:
    b = Build(0)
    scale, zero = b.constant(np.array(0.1, np.float32)), b.constant(np.array(128, np.uint8))
    filters = np.full((4, 3, 1, 1), 100, np.uint8)
    filters[1] = 128
    x = b.one("QuantizeLinear", ["x", scale, zero])
    w = b.constant(filters, "w")
    x = b.one("QLinearConv", [x, scale, zero, w, scale, zero, scale, zero])
    last = b.one("DequantizeLinear", [x, scale, zero])
    report, _, _ = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert not report.changed
    assert len(report.pinned) == 1
    assert report.pinned[0].startswith("QLinearConv compute with whole numbers; write the file")
