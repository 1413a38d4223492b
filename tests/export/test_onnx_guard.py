"""What may not be handed to a library, by hand; `tests/properties/test_bundle_fuzz.py` has more."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from polarprune.errors import BundleError
from polarprune_export.onnx_guard import guard_model
from tests.small_bundles import small_model

Change = Callable[[onnx.ModelProto], None]


def refusal(change: Change, **options: bool) -> str:
    model = small_model()
    change(model)
    with pytest.raises(BundleError) as caught:
        guard_model(model.SerializeToString(), "m.onnx", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def add(model: onnx.ModelProto, node: onnx.NodeProto, *constants: object) -> None:
    """A node behind the logits, and constants named k0, k1, ... ."""
    for i, values in enumerate(constants):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), f"k{i}"))
    model.graph.node.append(node)


def test_a_whole_model_passes_with_its_largest_tensor() -> None:
    model, largest = guard_model(small_model().SerializeToString(), "m.onnx")
    assert len(model.graph.node) == 17
    assert largest == 4 * 8 * 8 * 4


def test_the_largest_tensor_is_that_of_one_image_whatever_the_batch() -> None:
    model = small_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 16
    assert guard_model(model.SerializeToString(), "m.onnx")[1] == 16 * 4 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (helper.make_node("ConstantOfShape", ["k0"], ["y"]), [np.array([50_000, 50_000])]),
        (helper.make_node("Expand", ["logits", "k0"], ["y"]), [np.array([10**6, 10**3, 3])]),
        (helper.make_node("Tile", ["logits", "k0"], ["y"]), [np.array([10**5, 10**4])]),
    ],
)
def test_ten_gigabytes_are_refused_before_they_are_taken(
    node: onnx.NodeProto, constants: list[object]
) -> None:
    words = refusal(lambda model: add(model, node, *constants))
    assert f"{node.op_type} '' makes a tensor of" in words
    assert "bytes for one image" in words


def test_a_size_that_shows_only_at_run_time_is_refused() -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("NonZero", ["logits"], ["places"]))
        model.graph.node.append(helper.make_node("Shape", ["places"], ["size"]))
        model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["y"], "big"))

    assert "ConstantOfShape 'big' makes a tensor whose size cannot be told" in refusal(change)


def test_weights_are_inside_and_as_large_as_stated() -> None:
    def outside(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_location = TensorProto.EXTERNAL
        model.graph.initializer[0].external_data.add(key="location", value="../../secret")

    def larger(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[0] = 10**9

    def two_places(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].float_data.append(1.0)

    assert "'w0' is kept in another file" in refusal(outside)
    assert "holds 432 values or bytes in raw_data, it needs 108000000000" in refusal(larger)
    assert "in float_data, raw_data" in refusal(two_places)


@pytest.mark.parametrize("name", ["FLOAT", "FLOAT16", "BFLOAT16", "INT8", "INT4", "INT64", "BOOL"])
@pytest.mark.parametrize("raw", [True, False])
def test_every_type_that_we_write_is_read(name: str, raw: bool) -> None:
    kind = TensorProto.DataType.Value(name)
    values = np.array([1, 0, 1], np.float32)
    tensor = helper.make_tensor("c", kind, [3], values)
    if raw:
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor), "c")
    model = small_model()
    model.graph.initializer.append(tensor)
    guard_model(model.SerializeToString(), "m.onnx")


def test_a_loop_is_refused_in_a_bundle_and_may_stand_in_a_file_of_somebody_else() -> None:
    value = numpy_helper.from_array(np.float32(0))
    inner = helper.make_node("Constant", [], ["zero"], value=value)
    out = helper.make_tensor_value_info("zero", TensorProto.FLOAT, [])
    branch = helper.make_graph([inner], "b", [], [out])
    node = helper.make_node("If", ["k0"], ["y"], "if", then_branch=branch, else_branch=branch)
    assert "a graph in a graph" in refusal(lambda model: add(model, node, np.bool_(True)))
    model = small_model()
    add(model, node, np.bool_(True))
    guard_model(model.SerializeToString(), "m.onnx", foreign=True)


def test_tensors_in_inner_graphs_are_looked_at_too() -> None:
    value = numpy_helper.from_array(np.float32(0))
    value.raw_data = b""
    value.data_location = TensorProto.EXTERNAL
    inner = helper.make_node("Constant", [], ["zero"], value=value)
    out = helper.make_tensor_value_info("zero", TensorProto.FLOAT, [])
    branch = helper.make_graph([inner], "b", [], [out])
    node = helper.make_node("If", ["k0"], ["y"], "if", then_branch=branch, else_branch=branch)
    assert "in another file" in refusal(lambda m: add(m, node, np.bool_(True)), foreign=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("strides", [0, 1]), ("group", 0), ("dilations", [2**40, 1]), ("pads", [-1])],
)
def test_attributes_that_others_divide_by_or_loop_over(name: str, value: object) -> None:
    def change(model: onnx.ModelProto) -> None:
        kept = [a for a in model.graph.node[0].attribute if a.name != name]
        del model.graph.node[0].attribute[:]
        model.graph.node[0].attribute.extend([*kept, helper.make_attribute(name, value)])

    assert f"'{name}' of node 'conv_0'" in refusal(change)


def test_a_cycle_and_an_unknown_version_are_refused() -> None:
    def cycle(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[0] = "s"

    def future(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 999

    assert "is not valid ONNX" in refusal(cycle)
    assert "opset 999 is none of 1 to" in refusal(future)


@pytest.mark.parametrize("side", [-1, 2**40])
def test_a_side_that_cannot_be_is_refused(side: int) -> None:
    # With -1 the shape inference of onnx 1.23 aborts the process: no exception can be caught.
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = side

    assert refusal(change) == f"m.onnx: 'input' has a side of {side}; export again"


def test_a_kernel_larger_than_its_image_is_refused_before_a_slice_sees_the_result() -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute.append(helper.make_attribute("kernel_shape", [100, 100]))

    assert "has a side of -" in refusal(change)


def test_names_that_are_no_text_are_refused() -> None:
    content = small_model().SerializeToString().replace(b"conv_0", b"c\xff\xfev_0")
    with pytest.raises(BundleError, match=r"name b'c\\xff\\xfev_0' is too long or cannot"):
        guard_model(content, "m.onnx")
