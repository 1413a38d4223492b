"""Random graphs: the outputs stay, nothing is left for a second pass, and nothing is kept in vain.

What has to stay is asked of the graph itself, with numbers: noise is added to one channel at a
time, and a channel that no output notices is not needed. No rule of the collapse is used for that.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from random_onnx import Build, Value, conv, gate, norm, random_model

from polarprune.errors import ParityError, Refused
from polarprune_export import CollapseReport, collapse_onnx
from polarprune_export.onnx_collapse import collapsing, cutting, needs

NOISE = 10.0


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"]).run(None, feeds)


def collapsed(
    model: onnx.ModelProto, folder: Path
) -> tuple[CollapseReport, onnx.ModelProto] | None:
    """None for the few whose outputs overflow."""
    onnx.save(model, folder / "in.onnx")
    try:
        report = collapse_onnx(folder / "in.onnx", folder / "out.onnx")
    except Refused as error:
        if "not finite" not in str(error):
            raise
        return None
    return report, onnx.load(folder / "out.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


@settings(max_examples=30)
@given(seed=st.integers(0, 2**20), opset=st.sampled_from([9, 11, 13, 17, 18, 21]))
def test_outputs_stay_and_a_second_pass_finds_nothing(seed: int, opset: int, folder: Path) -> None:
    model = random_model(seed, steps=9, opset=opset)
    if seed % 2:  # a file that states the sizes of all values
        model = onnx.shape_inference.infer_shapes(model)
    found = collapsed(model, folder)
    if found is None:
        return
    report, small = found
    images = np.random.default_rng(1).standard_normal((4, 3, 6, 6)).astype(np.float32)
    results = run(small, x=images)
    for wanted, got in zip(run(model, x=images), results, strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * (np.abs(wanted).max() or 1)
    assert report.macs[1] <= report.macs[0]
    assert report.params[1] <= report.params[0] + report.channels[1]  # biases may be new
    again = collapse_onnx(folder / "out.onnx", folder / "again.onnx")
    assert not again.changed
    assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()
    onnx.checker.check_model(with_shapes(small, [result.shape for result in results]))


def with_shapes(model: onnx.ModelProto, shapes: list[tuple[int, ...]]) -> onnx.ModelProto:
    """The checker wants shapes of outputs; strict inference fails where stored ones are stale."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for value, shape in zip(made.graph.output, shapes, strict=True):
        if not value.type.tensor_type.HasField("shape"):
            sizes = ["n", *shape[1:]]
            value.CopyFrom(helper.make_tensor_value_info(value.name, 1, sizes))
    return onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True)


def straight_model(seed: int) -> tuple[onnx.ModelProto, list[Value]]:
    """Convolutions one after the other; their results, in order.

    Nothing is tied here, no activation is flat, and constants can all be folded: either there is no
    padding, or all of them are zero.
    """
    b = Build(seed, largest=0.5)
    padding = b.chance(0.5)
    x, made = Value("x", 3, 12), []
    for _ in range(3):
        x = conv(b, x, int(b.random.integers(6, 13)), int(b.random.choice([1, 3])), pad=padding)
        if padding and len(b.nodes[-1].input) == 3:
            del b.nodes[-1].input[2]
        made.append(x)
        if b.chance(0.4) and not padding:
            x = norm(b, x)
        if b.chance(0.4):
            x = gate(b, x)
        kind = str(b.random.choice(["LeakyRelu", "Elu"] if padding else ["Sigmoid", "LeakyRelu"]))
        x = Value(b.one(kind, [x.name]), x.channels, x.side)
    return b.model([x.name], x=(3, 12, 12)), made


def needed_channels(model: onnx.ModelProto, made: list[Value], images: np.ndarray) -> list[int]:
    """How many channels of each value vary with the image and are noticed by the output."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.node[:]
    names = {value.name for value in made}
    for node in model.graph.node:
        probed.graph.node.append(node)
        if node.output[0] in names:
            name = node.output[0]
            probed.graph.node[-1].output[0] = f"{name}_plain"
            probed.graph.node.append(
                helper.make_node("Add", [f"{name}_plain", f"{name}_noise"], [name])
            )
    for value in made:
        for extra in ("noise", "plain"):
            info = helper.make_tensor_value_info(
                f"{value.name}_{extra}", 1, ["n", value.channels, "h", "w"]
            )
            (probed.graph.input if extra == "noise" else probed.graph.output).append(info)
    zeros = {
        f"{v.name}_noise": np.zeros((len(images), v.channels, v.side, v.side), np.float32)
        for v in made
    }
    plain, *values = run(probed, x=images, **zeros)
    counts = []
    generator = np.random.default_rng(0)
    for value, got in zip(made, values, strict=True):
        count = 0
        for channel in range(value.channels):
            noise = zeros[f"{value.name}_noise"].copy()
            noise[:, channel] = generator.standard_normal(noise[:, channel].shape) * NOISE
            noticed = run(probed, x=images, **{**zeros, f"{value.name}_noise": noise})[0]
            count += np.ptp(got[:, channel]) > 0 and not np.array_equal(noticed, plain)
        counts.append(int(count))
    return counts


@settings(max_examples=25)
@given(seed=st.integers(0, 2**20))
def test_of_straight_graphs_exactly_the_needed_channels_are_left(seed: int, folder: Path) -> None:
    model, made = straight_model(seed)
    images = np.random.default_rng(2).standard_normal((2, 3, 12, 12)).astype(np.float32)
    wanted = needed_channels(model, made, images)
    wanted[-1] = made[-1].channels  # the output itself
    found = collapsed(model, folder)
    assert found is not None
    convolutions = [node for node in found[1].graph.node if node.op_type == "Conv"]
    shapes = {tensor.name: tensor.dims for tensor in found[1].graph.initializer}
    left = [shapes[node.input[1]][0] for node in convolutions]
    if 0 in wanted:  # the output is the same for all images; what stays writes constants
        assert all(count <= max(1, want) for count, want in zip(left, wanted, strict=True))
    else:
        assert left == wanted


def _forget_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cutting.cut_weight

    def wrong(weight: np.ndarray, groups: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        made = plain(weight, groups, rows, columns).copy()
        made[:, 0] = 0
        return made

    monkeypatch.setattr(cutting, "cut_weight", wrong)


def _fold_into_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polarprune_export.onnx_collapse.mixes.pads", lambda node, weight: False)


def _take_nothing_for_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = needs.needed_content

    def less(analysis: object) -> np.ndarray:
        content = plain(analysis)  # type: ignore[arg-type]
        content[: len(content) // 2] = False
        return content

    monkeypatch.setattr(needs, "needed_content", less)


PLANTED = [_forget_a_column, _fold_into_padding, _take_nothing_for_needed]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_error_is_found_and_nothing_is_written(
    plant: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = Build(3)
    x = conv(b, Value("x", 3, 8), 6)
    w = np.asarray(b.random.uniform(0.2, 1, (6, 3, 3, 3)), np.float32)
    w[[1, 4]] = 0
    inputs = ["x", b.constant(w, "w"), b.constant(np.full(6, 0.5, np.float32), "b")]
    b.nodes.clear()
    y = b.one("Relu", [b.one("Conv", inputs, pads=[1] * 4)])
    second = np.asarray(b.random.uniform(0.2, 1, (2, 6, 3, 3)), np.float32)
    second[:, 2] = 0
    last = b.one("Conv", [y, b.constant(second, "w")], pads=[1] * 4)
    onnx.save(b.model([last], x=(3, 8, 8)), tmp_path / "in.onnx")
    assert x.channels == 6
    plant(monkeypatch)  # type: ignore[operator]
    with pytest.raises((ParityError, Refused), match="nothing is written"):
        collapsing.collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]
