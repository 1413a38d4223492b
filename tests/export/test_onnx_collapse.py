"""collapse-onnx on the smallest graphs: one rule each, and exactly the channels that go by it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_layers import add_conv, collapse, kinds, straight, weight
from random_onnx import Build


def stored(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def test_filters_of_zero_go_with_their_readers_columns(tmp_path: Path) -> None:
    b = straight(None, 3, 1)
    report, _, shapes = collapse(tmp_path, b.model([b.last], x=(3, 8, 8)))
    assert shapes == {"w_0": (3, 3, 1, 1), "w_1": (2, 3, 3, 3)}
    assert report.channels == (7, 5)
    assert report.macs == (5 * 3 * 64 + 2 * 5 * 9 * 64, 3 * 3 * 64 + 2 * 3 * 9 * 64)
    assert report.params == (15 + 90, 9 + 54)
    assert report.max_rel_error <= 1e-6


def test_a_constant_is_folded_through_a_relu_into_an_unpadded_convolution(tmp_path: Path) -> None:
    b = straight([0.1, 0.7, 0.2, -0.5, 0.3], 3, 0)
    _, made, shapes = collapse(tmp_path, b.model([b.last], x=(3, 8, 8)))
    assert shapes["w_0"] == (3, 3, 1, 1)
    (bias,) = (name for name in shapes if name.endswith("_bias"))
    wanted = 0.7 * weight(2, 5, 3)[:, 1].sum(axis=(1, 2))  # channel 3 is -0.5 before the Relu
    np.testing.assert_allclose(stored(made, bias), wanted, rtol=1e-6)


def test_a_constant_is_not_folded_into_a_padded_convolution(tmp_path: Path) -> None:
    b = straight([0.1, 0.7, 0.2, -0.5, 0.3], 3, 1)
    _, _, shapes = collapse(tmp_path, b.model([b.last], x=(3, 8, 8)))
    assert shapes["w_0"] == (4, 3, 1, 1), "0.7 has to stay, relu(-0.5) goes"


def test_a_constant_in_an_average_over_padding_is_no_constant(tmp_path: Path) -> None:
    for counts, left in ((0, 4), (1, 5)):
        b = Build(0)
        x = add_conv(b, "x", weight(5, 3, zero=(1,)), np.full(5, 0.5))
        x = b.one("AveragePool", [x], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=counts)
        last = add_conv(b, x, weight(2, 5))
        _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
        assert shapes["w_0"][0] == left


def test_a_scale_of_zero_takes_the_filter_before_it(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3))
    scale, shift = np.array([1, 0, 1, 0], np.float32), np.array([0.2, 0, 0.1, 0.4], np.float32)
    norm = [scale, shift, np.full(4, 0.3, np.float32), np.ones(4, np.float32)]
    x = b.one("BatchNormalization", [x, *(b.constant(a) for a in norm)])
    last = add_conv(b, b.one("Sigmoid", [x]), weight(2, 4))
    _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert shapes["w_0"] == (2, 3, 1, 1)
    assert shapes["w_5"] == (2, 2, 1, 1)


def test_columns_that_nobody_weighs_take_what_wrote_them(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3), np.ones(4))
    columns = weight(2, 4, 3)
    columns[:, [0, 2]] = 0
    last = add_conv(b, b.one("Relu", [x]), columns, pads=[1] * 4)
    _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert shapes["w_0"] == (2, 3, 1, 1)


def block(dead: bool, gate: bool = False) -> Build:
    b = Build(0)
    x = b.one("Relu", [add_conv(b, "x", weight(4, 3))])
    y = b.one("Relu", [add_conv(b, x, weight(6, 4, 3), pads=[1] * 4)])
    y = add_conv(b, y, weight(4, 6, zero=tuple(range(4)) if dead and not gate else ()))
    if gate:
        y = b.one("Mul", [y, b.constant(np.zeros((1, 4, 1, 1), np.float32))])
    b.last = b.one("Relu", [b.one("Add", [x, y])])  # type: ignore[attr-defined]
    return b


@pytest.mark.parametrize("gate", [False, True], ids=["zero filters", "zero gate"])
def test_a_dead_block_is_gone(tmp_path: Path, gate: bool) -> None:
    b = block(dead=True, gate=gate)
    report, made, _ = collapse(tmp_path, b.model([b.last], x=(3, 8, 8)))
    assert kinds(made) == ["Conv", "Relu"], "the Relu of a Relu goes too"
    assert report.blocks_removed == 1
    assert made.graph.output[0].name == b.last


def test_a_bias_of_zeros_is_an_edge_but_no_block(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3))
    last = b.one("Relu", [b.one("Add", [x, b.constant(np.zeros((4, 1, 1), np.float32))])])
    report, made, _ = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert kinds(made) == ["Conv", "Relu"]
    assert report.blocks_removed == 0


def test_weights_that_are_computed_from_constants_are_cut(tmp_path: Path) -> None:
    b = Build(0)
    plain = b.constant(weight(4, 3, zero=(1, 2)), "w")
    mean = b.one("ReduceMean", [plain], axes=[1, 2, 3], keepdims=1)
    x = b.one("Conv", ["x", b.one("Sub", [plain, mean])])
    last = add_conv(b, x, weight(2, 4))
    _, made, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert kinds(made) == ["Conv", "Conv"]
    assert sorted(shapes.values()) == [(2, 2, 1, 1), (2, 3, 1, 1)]


def test_a_branch_of_constants_becomes_a_stored_vector(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3))
    y = add_conv(
        b, b.one("Relu", [x]), weight(4, 4, 3, zero=(0, 1, 2, 3)), [1, 2, 3, 4], pads=[1] * 4
    )
    last = b.one("Add", [x, y])
    report, made, _ = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert kinds(made) == ["Conv", "Add"]
    assert report.blocks_removed == 0


def test_a_stream_keeps_what_any_branch_writes(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(0, 1)))
    y = add_conv(b, "x", weight(4, 3, zero=(1, 2)))
    last = add_conv(b, b.one("Add", [x, y]), weight(2, 4))
    _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert shapes["w_0"][0] == shapes["w_1"][0] == 3, "only channel 1 is zero in both"


def test_what_feeds_a_filter_behind_a_scale_of_zero_goes_though_its_stream_stays(
    tmp_path: Path,
) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(2, 3))
    inner = b.one("Relu", [add_conv(b, "x", weight(3, 3))])
    reads = np.array([[1, 1, 0], [0, 0, 1]], np.float32).reshape(2, 3, 1, 1)
    branch = add_conv(b, inner, reads)
    norm = [np.array([1, 0], np.float32), np.zeros(2, np.float32), *[np.ones(2, np.float32)] * 2]
    branch = b.one("BatchNormalization", [branch, *(b.constant(a) for a in norm)])
    last = b.one("Add", [x, branch])
    _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert shapes["w_1"] == (2, 3, 1, 1), "inner channel 2 is read by the filter whose scale is 0"
    assert shapes["w_2"] == (2, 2, 1, 1)


def test_an_operand_of_which_nothing_is_left_leaves_the_concatenation(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(3, 3, zero=(0, 1, 2)))
    y = add_conv(b, "x", weight(4, 3, zero=(2,)))
    last = add_conv(b, b.one("Concat", [x, y], axis=1), weight(2, 7, 3), pads=[1] * 4)
    _, made, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert kinds(made) == ["Conv", "Conv"]
    assert sorted(shapes.values()) == [(2, 3, 3, 3), (3, 3, 1, 1)]


def test_a_squeeze_and_excitation_gate_that_is_zero_closes_its_channel(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3))
    pooled = b.one("GlobalAveragePool", [x])
    small = b.one("Relu", [add_conv(b, pooled, weight(2, 4))])
    factor = b.one("Relu", [add_conv(b, small, weight(4, 2, zero=(1,)))])
    last = add_conv(b, b.one("Mul", [x, factor]), weight(2, 4))
    _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert shapes["w_0"][0] == 4, "the gates are computed from it"
    columns = weight(2, 4)
    columns[:, 1] = 0  # now they are not
    b.constants["w_1"].CopyFrom(numpy_helper.from_array(columns, "w_1"))
    _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert (shapes["w_0"][0], shapes["w_1"], shapes["w_2"]) == (3, (2, 3, 1, 1), (3, 2, 1, 1))


def grouped(first_zero: tuple[int, ...], groups: int = 2) -> Build:
    b = Build(0)
    x = add_conv(b, "x", weight(6, 3, zero=first_zero))
    x = add_conv(b, x, weight(6, 6 // groups, 3), group=groups, pads=[1] * 4)
    b.last = add_conv(b, x, weight(2, 6))  # type: ignore[attr-defined]
    return b


@pytest.mark.parametrize(
    ("zero", "groups", "left"),
    [
        ((0, 1, 2), 2, ((3, 3, 1, 1), (3, 3, 3, 3), 1)),  # a whole group
        ((0, 4), 2, ((4, 3, 1, 1), (6, 2, 3, 3), 2)),  # one of each group
        ((0, 1, 4), 2, ((4, 3, 1, 1), (6, 2, 3, 3), 2)),  # as many as the fuller group has
        ((1, 5), 6, ((4, 3, 1, 1), (4, 1, 3, 3), 4)),  # depthwise
    ],
    ids=["whole group", "equal counts", "levelled", "depthwise"],
)
def test_groups_keep_equal_counts(
    tmp_path: Path, zero: tuple[int, ...], groups: int, left: tuple[Any, ...]
) -> None:
    b = grouped(zero, groups)
    _, made, shapes = collapse(tmp_path, b.model([b.last], x=(3, 8, 8)))
    middle = made.graph.node[1]
    group = next(a.i for a in middle.attribute if a.name == "group")
    assert (shapes["w_0"], shapes["w_1"], group) == left


def shuffled(zero: tuple[int, ...]) -> Build:
    b = Build(0)
    x = add_conv(b, "x", weight(6, 3, zero=zero))
    x = b.one("Reshape", [x, b.constant(np.array([0, 2, 3, 8, 8]))])
    x = b.one("Transpose", [x], perm=[0, 2, 1, 3, 4])
    x = b.one("Reshape", [x, b.constant(np.array([0, 6, 8, 8]))])
    b.last = add_conv(b, x, weight(2, 6))  # type: ignore[attr-defined]
    return b


def test_a_shuffle_stays_one_where_groups_keep_alike(tmp_path: Path) -> None:
    b = shuffled((0, 3))
    _, made, shapes = collapse(tmp_path, b.model([b.last], x=(3, 8, 8)))
    assert kinds(made) == ["Conv", "Reshape", "Transpose", "Reshape", "Conv"]
    assert shapes["w_0"][0] == 4


def test_an_uneven_shuffle_becomes_one_gather(tmp_path: Path) -> None:
    b = shuffled((0, 1, 5))
    _, made, shapes = collapse(tmp_path, b.model([b.last], x=(3, 8, 8)))
    assert kinds(made) == ["Conv", "Gather", "Conv"]
    assert shapes["w_0"][0] == 3


def test_a_flattened_channel_takes_all_its_columns(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(2,)), [0, 0, 0.5, 0])
    x = b.one("Reshape", [x, b.constant(np.array([-1, 4 * 16]))])
    last = b.one("Gemm", [x, b.constant(weight(5, 64)[:, :, 0, 0], "w")], transB=1)
    _, made, shapes = collapse(tmp_path, b.model([last], x=(3, 4, 4)))
    assert shapes["w_2" if "w_2" in shapes else "w_3"] == (5, 48)
    assert len(made.graph.node[-1].input) == 3, "the constant 0.5 went into a bias"


def test_shared_weights_are_cut_for_each_reader(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(0,)))
    y = add_conv(b, "x", weight(4, 3, zero=(0, 1)))
    shared = b.constant(weight(2, 4), "w")
    lasts = [b.one("Conv", [v, shared], kernel_shape=[1, 1]) for v in (x, y)]
    _, made, shapes = collapse(tmp_path, b.model(lasts, x=(3, 8, 8)))
    readers = [node.input[1] for node in made.graph.node[-2:]]
    assert [shapes[name] for name in readers] == [(2, 3, 1, 1), (2, 2, 1, 1)]


def quantised(b: Build, w: np.ndarray, per_channel: bool) -> str:
    """Whole numbers behind a DequantizeLinear."""
    scale = (np.abs(w).max(axis=(1, 2, 3)) if per_channel else np.abs(w).max()) / 127
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    numbers = np.round(w / (scale[:, None, None, None] if per_channel else scale)).astype(np.int8)
    inputs = [b.constant(numbers, "q"), b.constant(np.asarray(scale), "s")]
    inputs.append(b.constant(np.zeros(scale.shape, np.int8), "z"))
    return b.one("DequantizeLinear", inputs, axis=0)


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_quantised_filters_are_cut_with_their_scales(tmp_path: Path, per_channel: bool) -> None:
    b = Build(0)
    x = b.one("Conv", ["x", quantised(b, weight(5, 3, zero=(1, 3)), per_channel)])
    grid = [b.constant(np.float32(0.05), "s"), b.constant(np.uint8(0), "z")]
    x = b.one("DequantizeLinear", [b.one("QuantizeLinear", [b.one("Relu", [x]), *grid]), *grid])
    last = b.one("Conv", [x, quantised(b, weight(2, 5, 3), per_channel)], pads=[1] * 4)
    report, made, _ = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    whole = [tuple(t.dims) for t in made.graph.initializer if t.data_type == TensorProto.INT8]
    assert {(3, 3, 1, 1), (2, 3, 3, 3)} <= set(whole)
    assert ((3,) in whole) == per_channel
    assert report.tolerance == 2e-2
    assert kinds(made).count("DequantizeLinear") == 3


def test_a_size_read_from_a_cut_value_follows_the_cut(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(1,)))
    shape = b.one("Shape", [x])
    head = b.one("Slice", [shape, *(b.constant(np.array([n])) for n in (0, 2, 0))])
    end = np.iinfo(np.int64).max  # what exporters write for "to the end"
    tail = b.one("Slice", [shape, *(b.constant(np.array([n])) for n in (2, end, 0))])
    twice = b.one("Mul", [tail, b.constant(np.array([2, 2]))])
    sizes = b.one("Concat", [head, twice], axis=0)
    x = b.one("Resize", [x, "", "", sizes], mode="nearest")
    last = add_conv(b, x, weight(2, 4))
    _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert shapes["w_0"][0] == 3


def test_a_channel_count_in_arithmetic_becomes_a_number(tmp_path: Path) -> None:
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3, zero=(1,)))
    count = b.one("Gather", [b.one("Shape", [x]), b.constant(np.array(1))])
    root = b.one("Sqrt", [b.one("Cast", [count], to=TensorProto.FLOAT)])
    last = b.one("Div", [add_conv(b, x, weight(2, 4)), root])
    _, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert shapes["w_0"][0] == 3


def test_float16_has_its_own_tolerance(tmp_path: Path) -> None:
    b = Build(0, dtype=np.float16)
    x = b.one("Conv", ["x", b.constant(weight(5, 3, zero=(1,)).astype(np.float16), "w")])
    last = b.one("Conv", [x, b.constant(weight(2, 5).astype(np.float16), "w")])
    report, _, shapes = collapse(tmp_path, b.model([last], x=(3, 8, 8)))
    assert report.tolerance == 1e-2
    assert shapes["w_0"][0] == 4


def test_uint8_images_are_drawn_over_their_range(tmp_path: Path) -> None:
    b = straight(None, 3, 1)
    cast = helper.make_node("Cast", ["pixels"], ["x"], "cast", to=TensorProto.FLOAT)
    b.nodes.insert(0, cast)
    model = b.model([b.last], pixels=(3, 8, 8))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    report, _, _ = collapse(tmp_path, model)
    assert report.channels == (7, 5)
