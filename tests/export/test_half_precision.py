"""float16 and bfloat16 graphs: against torch's own half precision, and where numbers end."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, fx, nn

from polarprune.errors import ParityError
from polarprune_export.half_emulation import emulate_half
from polarprune_export.half_precision import OPSETS, lower_to_half
from polarprune_export.onnx_session import Array, open_session
from polarprune_export.onnx_writer import write_onnx
from polarprune_export.parity import link_of, reference_outputs
from polarprune_export.precisions import TOLERANCES, Samples, lower_precision, runnable

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
HALF = pytest.mark.parametrize("precision", ["fp16", "bf16"])


def _written(net: nn.Module, folder: Path, precision: str) -> onnx.ModelProto:
    path = folder / "model.onnx"
    write_onnx(net, path, torch.randn(2, 3, 16, 16), opset=OPSETS[precision])
    return onnx.load(str(path))


def _images(side: int = 16, count: int = 4) -> Array:
    images = np.random.default_rng(1).standard_normal((count, 3, side, side))
    return images.astype(np.float32)


def _run(model: onnx.ModelProto, images: Array) -> Array:
    output: Array = open_session(emulate_half(model).SerializeToString()).run(
        None, {"input": images}
    )[0]
    return output


@HALF
def test_weights_and_operators_are_low_and_the_ends_are_not(
    plain: fx.GraphModule, tmp_path: Path, precision: str
) -> None:
    model = _written(plain, tmp_path, precision)
    before = Counter(node.op_type for node in model.graph.node)
    size = model.ByteSize()
    assert lower_to_half(model, precision) == ()
    onnx.checker.check_model(model, full_check=True)
    floats = [t for t in model.graph.initializer if t.data_type != TensorProto.INT64]
    assert {t.data_type for t in floats} == {TYPES[precision]}
    ends = (*model.graph.input, *model.graph.output)
    assert {v.type.tensor_type.elem_type for v in ends} == {TensorProto.FLOAT}
    after = Counter(node.op_type for node in model.graph.node)
    assert after - before == Counter({"Cast": 2})
    assert not before - after
    assert model.ByteSize() < 0.75 * size


@HALF
def test_it_computes_what_torch_computes_in_that_precision(
    plain: fx.GraphModule, tmp_path: Path, precision: str
) -> None:
    model, images = _written(plain, tmp_path, precision), _images()
    reference = reference_outputs(plain.double(), images)[0]
    plain.float()
    lower_to_half(model, precision)
    ours = _run(model, images)
    low = copy.deepcopy(plain).to(DTYPES[precision])
    with torch.no_grad():
        torchs = low(torch.from_numpy(images).to(DTYPES[precision])).float().numpy()
    scale, error = np.abs(reference).max(), np.abs(torchs - reference).max()
    assert 0 < np.abs(ours - reference).max() < 3 * error
    assert np.abs(ours - torchs).max() < 3 * error
    assert error < TOLERANCES[precision] * scale


@HALF
def test_the_emulation_holds_nothing_that_the_precision_does_not_have(
    plain: fx.GraphModule, tmp_path: Path, precision: str
) -> None:
    model = _written(plain, tmp_path, precision)
    lower_to_half(model, precision)
    emulated = emulate_half(model)
    inner = [n.output[0] for n in model.graph.node if n.op_type in ("Conv", "Add", "Gemm", "Relu")]
    emulated.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner
    )
    session = open_session(emulated.SerializeToString())
    for name, value in zip(inner, session.run(inner, {"input": _images()}), strict=True):
        rounded = torch.from_numpy(value).to(DTYPES[precision]).float().numpy()
        np.testing.assert_array_equal(value, rounded, err_msg=name)


class Loud(nn.Module):
    """Its hidden values pass 65,504; what it answers does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)
        with torch.no_grad():
            self.up.weight.mul_(3e5)
            self.down.weight.mul_(1e-3)
            self.head.weight.mul_(1e-2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down(torch.relu(self.up(x))))
        return self.head(x.mean((2, 3)))


def test_an_overflow_is_caught_where_a_cpu_would_not_show_it(tmp_path: Path) -> None:
    net, images = Loud().eval(), _images()
    model = _written(net, tmp_path, "fp16")
    lower_to_half(model, "fp16")
    as_it_is = open_session(model.SerializeToString()).run(None, {"input": images})[0]
    reference = reference_outputs(net.double(), images)
    assert np.abs(as_it_is - reference[0]).max() < 0.01 * np.abs(reference[0]).max()
    session = open_session(runnable(model, "fp16"))
    with pytest.raises(ParityError, match="emulated"):
        link_of(session, "onnxruntime (float16, emulated)", 1e-2, "random", images, reference)


def test_what_overflows_stays_in_float32_and_is_named(tmp_path: Path) -> None:
    net, images = Loud().eval(), _images()
    model = _written(net, tmp_path, "fp16")
    lowered = lower_precision(model, "fp16", Samples(images, images[:0], real=False))
    assert set(lowered.kept) == {"conv_0", "relu_0", "conv_1"}
    assert lowered.why is not None
    kinds = {t.name: t.data_type for t in lowered.model.graph.initializer}
    assert kinds["up.weight"] == TensorProto.FLOAT
    assert kinds["head.weight_float16"] == TensorProto.FLOAT16
    reference = reference_outputs(net.double(), images)[0]
    assert np.abs(_run(lowered.model, images) - reference).max() < 5e-3 * np.abs(reference).max()
    bf16 = lower_precision(
        _written(net.float(), tmp_path, "bf16"), "bf16", Samples(images, images[:0], real=False)
    )
    assert bf16.kept == ()


def test_a_constant_that_does_not_fit_stays() -> None:
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Mul", ["input", "big"], ["logits"], name="mul_0")],
        "g",
        [helper.make_tensor_value_info("input", 1, ["batch", 3])],
        [helper.make_tensor_value_info("logits", 1, ["batch", 3])],
        [numpy_helper.from_array(np.array([1e5], np.float32), "big")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert lower_to_half(model, "fp16") == ("mul_0",)
    assert [t.data_type for t in model.graph.initializer] == [TensorProto.FLOAT]


class Upsampled(nn.Module):
    """Resize has scales that are float32 in any case."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.one(x), scale_factor=2.0, mode="bilinear")


@HALF
def test_inputs_that_are_float32_in_any_case_stay(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    net = Upsampled().eval()
    model = _written(net, tmp_path, precision)
    assert lower_to_half(model, precision) == ()
    onnx.checker.check_model(model, full_check=True)
    images = _images()
    reference = reference_outputs(net.double(), images)[0]
    assert np.abs(_run(model, images) - reference).max() < 2e-2 * np.abs(reference).max()


@HALF
def test_any_nodes_can_stay(plain: fx.GraphModule, tmp_path: Path, precision: str) -> None:
    images = _images()
    reference = reference_outputs(plain.double(), images)[0]
    plain.float()
    written = _written(plain, tmp_path, precision)
    names = [node.name for node in written.graph.node]
    generator = np.random.default_rng(0)
    for _ in range(12):
        chosen = [name for name in names if generator.random() < 0.4]
        model = copy.deepcopy(written)
        assert set(chosen) <= set(lower_to_half(model, precision, chosen))
        onnx.checker.check_model(model, full_check=True)
        error = np.abs(_run(model, images) - reference).max() / np.abs(reference).max()
        assert error < TOLERANCES[precision]
    model = copy.deepcopy(written)
    lower_to_half(model, precision, names)
    error = np.abs(_run(model, images) - reference).max() / np.abs(reference).max()
    assert error < 1e-6
