"""A padded network has other counts and the same outputs."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import polarprune
from polarprune_deploy.layers.channel_padding import pad_channels
from polarprune_deploy.layers.layers_onnx import read_layers
from polarprune_export import write_onnx


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"input": images})[0]


def exported(network: nn.Module, size: int, path: Path) -> onnx.ModelProto:
    torch.manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):  # biases behind the folding
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
    write_onnx(network.eval(), path, torch.zeros(2, 3, size, size))
    return onnx.load(path)


class Odd(nn.Module):
    """Odd counts, a residual sum, a depthwise convolution, a concatenation, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 13, 3, padding=1)
        self.norm = nn.BatchNorm2d(13)
        self.inner = nn.Conv2d(13, 7, 3, padding=1)
        self.outer = nn.Conv2d(7, 13, 1)
        self.depthwise = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.left, self.right = nn.Conv2d(13, 5, 1), nn.Conv2d(13, 6, 1)
        self.last = nn.Conv2d(11, 9, 1)
        self.hidden, self.head = nn.Linear(9, 21), nn.Linear(21, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        x = nn.functional.max_pool2d(torch.sigmoid(self.depthwise(x)), 2)
        x = self.last(torch.cat([self.left(x), self.right(x)], 1))
        x = x.mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


@pytest.mark.parametrize("multiple", [4, 8, 16])
def test_counts_become_multiples_and_outputs_stay(tmp_path: Path, multiple: int) -> None:
    model = exported(Odd(), 16, tmp_path / "odd.onnx")
    before = model.SerializeToString()
    padded = pad_channels(model, multiple)
    assert padded is not None
    assert model.SerializeToString() == before
    images = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(run(padded, images), run(model, images), rtol=1e-4, atol=1e-5)
    widths = {
        each.name: (each.in_channels, each.out_channels) for each in read_layers(padded, 1).layers
    }

    def up(count: int) -> int:
        return -(-count // multiple) * multiple

    assert widths["stem"] == (3, up(13))
    assert widths["inner"] == (up(13), up(7))
    assert widths["depthwise"] == (up(13), up(13))
    assert widths["left"] == (up(13), 5)  # what a concatenation takes stays
    assert widths["last"] == (11, up(9))
    assert widths["head"] == (up(21), 10)


def test_a_shortcut_widened_with_zero_channels_can_be_padded(tmp_path: Path) -> None:
    """ResNets for CIFAR: the pad goes around the channels, front and back."""
    net = polarprune.build_network("resnet20", num_classes=10)
    example = torch.randn(2, 3, 16, 16)
    gated = polarprune.attach_gates(net, example)
    generator = torch.Generator().manual_seed(1)
    sites = [site for site in gated.sites if site.kind == "channel"]
    decisions = {site.name: torch.rand(site.units, generator=generator) < 0.6 for site in sites}
    for units in decisions.values():
        units[0] = True
    gated.set_decisions(decisions)
    model = exported(polarprune.collapse(gated), 16, tmp_path / "small.onnx")
    padded = pad_channels(model, 8)
    assert padded is not None
    layers = read_layers(padded, 1).layers
    assert all(each.out_channels % 8 == 0 for each in layers if each.kind == "convolution")
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(run(padded, images), run(model, images), rtol=1e-3, atol=1e-5)


def test_multiples_already_are_left_alone(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3))
    assert pad_channels(exported(net, 16, tmp_path / "even.onnx"), 16) is None
