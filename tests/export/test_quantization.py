"""int8: explicit quantisation, and layers that it costs too much."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from polarprune_export import sensitivity
from polarprune_export.onnx_session import Array, open_session
from polarprune_export.onnx_writer import write_onnx
from polarprune_export.precisions import Samples, lower_precision
from polarprune_export.quantization import Quantizer
from polarprune_export.sensitivity import choose_int8


def _images(count: int, seed: int = 0) -> Array:
    """Noise on a colour, which is what tells them apart."""
    generator = np.random.default_rng(seed)
    colours = generator.standard_normal((count, 3, 1, 1))
    return (colours + generator.standard_normal((count, 3, 16, 16))).astype(np.float32)


def _written(net: nn.Module, folder: Path) -> onnx.ModelProto:
    write_onnx(net, folder / "model.onnx", torch.randn(2, 3, 16, 16))
    return onnx.load(str(folder / "model.onnx"))


def _run(model: onnx.ModelProto, images: Array) -> Array:
    output: Array = open_session(model.SerializeToString()).run(None, {"input": images})[0]
    return output


def test_weights_have_a_scale_a_filter_and_activations_one(
    plain: fx.GraphModule, tmp_path: Path
) -> None:
    model = _written(plain, tmp_path)
    quantized = Quantizer(model, _images(16), tmp_path).quantized()
    onnx.checker.check_model(quantized, full_check=True)
    made = {output: node for node in quantized.graph.node for output in node.output}
    values = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    floats = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    convolutions = [n for n in quantized.graph.node if n.op_type == "Conv"]
    assert len(convolutions) == 3
    for node in convolutions:
        activation, weight = made[node.input[0]], made[node.input[1]]
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        whole, scale = values[weight.input[0]], values[weight.input[1]]
        assert whole.dtype == np.int8
        assert not values[weight.input[2]].any()
        # Symmetric: the largest weight of a filter is 127 steps.
        wanted = floats[weight.input[0].removesuffix("_quantized")]
        largest = np.abs(wanted).reshape(len(wanted), -1).max(axis=1)
        np.testing.assert_allclose(scale, largest / 127, rtol=1e-5)
        assert values[activation.input[1]].shape == ()
        assert not values[activation.input[2]].any()


def test_it_gives_nearly_the_same_outputs(plain: fx.GraphModule, tmp_path: Path) -> None:
    model, images = _written(plain, tmp_path), _images(32, seed=1)
    quantized = Quantizer(model, _images(32), tmp_path).quantized()
    wanted, got = _run(model, images), _run(quantized, images)
    assert 0 < np.abs(got - wanted).mean() < 0.02 * np.abs(wanted).max()


class Uneven(nn.Module):
    """One convolution has a channel a thousand times louder than those that decide."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.three = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)
        with torch.no_grad():
            self.one.weight[0] *= 2000
            self.two.weight[:, 0] /= 2e5
            self.head.bias -= self(torch.from_numpy(_images(64))).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.head(torch.relu(self.three(x)).mean((2, 3)))


def test_the_layer_that_costs_accuracy_is_found_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "AGREEMENT", 0.95)  # ten classes of an untrained network
    model, held_out = _written(Uneven().eval(), tmp_path), _images(256, seed=2)
    quantizer = Quantizer(model, _images(64), tmp_path)
    wanted = _run(model, held_out).argmax(1)
    whole = float((_run(quantizer.quantized(), held_out).argmax(1) == wanted).mean())
    choice = choose_int8(model, quantizer, held_out)
    assert whole < 0.95 < choice.agreement
    # What int8 cannot hold lies between these two.
    assert sorted(choice.errors, key=lambda name: choice.errors[name])[-1] in ("conv_0", "conv_1")
    assert {"conv_0", "conv_1"} & set(choice.kept)
    assert "conv_2" not in choice.kept
    got = float((_run(choice.model, held_out).argmax(1) == wanted).mean())
    assert got == choice.agreement


def test_where_int8_does_no_harm_nothing_is_measured_layer_by_layer(
    plain: fx.GraphModule, tmp_path: Path
) -> None:
    model = _written(plain, tmp_path)
    images = np.concatenate([_images(8, seed) * (seed + 1) for seed in range(4)])
    quantizer = Quantizer(model, images, tmp_path)
    choice = choose_int8(model, quantizer, images[:4])
    if choice.agreement == 1.0 and not choice.errors:
        assert choice.kept == ()
    else:
        pytest.fail("four images changed their class")


def test_the_same_network_and_images_give_the_same_bytes(
    plain: fx.GraphModule, tmp_path: Path
) -> None:
    model = _written(plain, tmp_path)
    samples = Samples(_images(32), _images(32, seed=1))
    first, second = (lower_precision(model, "int8", samples).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
