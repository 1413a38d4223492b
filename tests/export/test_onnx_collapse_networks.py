"""Softly pruned torchvision networks, exported by torch alone."""

import warnings
from pathlib import Path

import onnx
import pytest
import torch
import torchvision
from torch import nn

from benchmarks.onnx_collapse import lively, prepare
from polarprune_export import collapse_onnx


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_file_ends_where_the_torch_side_ends(name: str, tmp_path: Path) -> None:
    path, torch_side = prepare(name, 64, tmp_path)
    report = collapse_onnx(path, tmp_path / "small.onnx")
    assert report.macs[0] == torch_side["dense_macs"]
    assert report.macs[1] <= torch_side["macs"]
    assert report.pinned == ()


class Kept(nn.Module):
    """Norms, a gate and an upsampling that follows the size of another value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)
        self.register_buffer("mask", torch.ones(1, 8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.stem(x))) * self.mask
        y = torch.nn.functional.interpolate(self.up(y), size=x.shape[2:], mode="bilinear")
        return self.head(y)


@pytest.mark.parametrize("training", [False, True], ids=["folded", "norms kept"])
def test_a_gate_in_a_net_with_free_sides(training: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = lively(Kept(), torch.Generator().manual_seed(0))
    net.mask[:, [1, 2, 5]] = 0  # type: ignore[index,operator]
    net.up.weight.data[4] = 0  # type: ignore[union-attr]
    mode = torch.onnx.TrainingMode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.randn(2, 3, 32, 32),),
            str(tmp_path / "in.onnx"),
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}},
            dynamo=False,
            training=mode.PRESERVE if training else mode.EVAL,
            do_constant_folding=not training,
        )
    kinds = [node.op_type for node in onnx.load(tmp_path / "in.onnx").graph.node]
    assert ("BatchNormalization" in kinds) == training
    report = collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    # The filter of zeros has a bias: the convolution behind it has no padding, so it is folded.
    assert report.channels == (16, 5 + 5 + 2)
    assert report.pinned == ()
    assert [one["x"] for one in report.inputs] == [(2, 3, 64, 64), (3, 3, 129, 161)]


def test_a_segmentation_head_follows_its_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None)
    net = lively(net, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::2] = 0
                module.bias[::2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.randn(1, 3, 64, 64),), str(tmp_path / "in.onnx"), dynamo=False
        )
    report = collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert report.macs[1] < 0.4 * report.macs[0]
    assert report.pinned == ()
