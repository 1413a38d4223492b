"""Operators that a network itself needs pass the lint; the same from pruning do not."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import polarprune
from polarprune.errors import BundleError, Refused
from polarprune.manifest import read_manifest, write_manifest
from polarprune_export import lint_onnx, verify_bundle, write_bundle, write_onnx
from polarprune_export.base_operators import base_operators, refuse_masks
from polarprune_export.bundle import BundleContents

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """Computes with torch.where (an ONNX Where) and a mask of its own, as an attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(4, 8, 8))
        self.register_buffer("mask", (torch.arange(64).view(8, 8) % 3 > 0).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.second(torch.relu(self.first(x))))

    def end(self, y: Tensor) -> Tensor:
        y = torch.where(y > 0, y, y * 0.3) * self.mask
        return (torch.sigmoid(y) * self.scale).mean((2, 3))


class Picked(Base):
    """The same, with channels picked by index: what a bad cut would leave."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.tensor([0, 2, 3, 5]))
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x))[:, self.kept])
        return self.end(y)


class Masked(Base):
    """The same, with channels closed by a mask: a gate that was left."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gate", torch.tensor([1.0, 0, 1, 1, 0, 1]).view(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)) * self.gate
        return self.end(self.second(y) + y[:, :4])  # read twice: the exporter cannot hide it


def trained(net: nn.Module) -> nn.Module:
    """No parameter that happens to be 1."""
    for parameter in net.parameters():
        parameter.data.uniform_(0.1, 0.9)
    return net.eval()


@pytest.fixture(scope="module")
def pruned() -> nn.Module:
    gated = polarprune.attach_gates(trained(Base()), IMAGE)
    gated.set_decisions({s.name: torch.arange(s.units) % 2 == 0 for s in gated.sites})
    return polarprune.collapse(gated)


@pytest.fixture(scope="module")
def own(pruned: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a network with operators of its own; tests must not change it."""
    folder = tmp_path_factory.mktemp("own") / "out"
    write_bundle(pruned, folder, IMAGE, BundleContents("own", unpruned=Base))
    return folder


def test_the_networks_own_operators_pass_and_are_in_the_manifest(
    own: Path, pruned: nn.Module, tmp_path: Path
) -> None:
    assert read_manifest(own).base["operators"] == {"Greater": 1, "Mul": 1, "Where": 1}
    checked = verify_bundle(own)
    assert checked["operators"]["Where"] == 1
    with pytest.raises(Refused, match="Where"):
        write_bundle(pruned, tmp_path / "unknown", IMAGE, BundleContents("own"))
    assert not (tmp_path / "unknown").exists()


def test_verify_reads_the_counts_and_nothing_else(own: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(own, tmp_path / "out"))
    manifest = read_manifest(folder)
    write_manifest(dataclasses.replace(manifest, base={}), folder)
    with pytest.raises(Refused, match="Where"):
        verify_bundle(folder)
    for stated in (["Where"], {"Where": "many"}, {"Where": True}):
        write_manifest(dataclasses.replace(manifest, base={"operators": stated}), folder)
        with pytest.raises(BundleError, match=r"base\.operators"):
            verify_bundle(folder)
    assert json.loads(read_manifest(folder).to_json())["base"] == {"operators": {"Where": True}}


@pytest.mark.parametrize(
    ("net", "words"),
    [(Picked, "Gather.*picks by index"), (Masked, "Mul.*constants 0 or 1.*it has 1 Mul")],
)
def test_what_pruning_left_is_refused_though_the_base_has_other_findings(
    net: type[nn.Module], words: str, tmp_path: Path
) -> None:
    left = fx.symbolic_trace(trained(net()))
    report = write_onnx(left, tmp_path / "left.onnx", IMAGE)
    own = base_operators(report, left, IMAGE, lambda: Base().double())
    assert own == {"Greater": 1, "Mul": 1, "Where": 1}
    with pytest.raises(Refused, match=words):
        lint_onnx(report.path, own)


def test_the_base_is_not_made_where_nothing_is_found(plain: fx.GraphModule, tmp_path: Path) -> None:
    def fail() -> nn.Module:
        raise AssertionError

    image = torch.zeros(2, 3, 32, 32)
    report = write_onnx(plain, tmp_path / "plain.onnx", image)
    assert base_operators(report, plain, image, fail) == {}


def test_a_network_that_was_not_pruned_explains_itself(tmp_path: Path) -> None:
    net = trained(Base())
    report = write_onnx(net, tmp_path / "net.onnx", IMAGE)
    own = base_operators(report, net, IMAGE, lambda: net)
    lint_onnx(report.path, own)
    with pytest.raises(Refused):
        lint_onnx(report.path)


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_base_that_cannot_be_exported_explains_nothing(tmp_path: Path) -> None:
    net = trained(Base())
    report = write_onnx(net, tmp_path / "net.onnx", IMAGE)
    assert base_operators(report, net, IMAGE, Untraceable) == {}


class Gated(nn.Module):
    """A mask beside a convolution: the exporter multiplies it into the weights."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, padding=1)
        self.register_buffer("gate", torch.tensor([1.0, 0, 1, 1, 0, 1]).view(1, 6, 1, 1))
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = torch.relu(y) * self.gate if self.before else torch.relu(y * self.gate)
        return self.second(y).mean((2, 3))


@pytest.mark.parametrize("before", [False, True])
def test_a_mask_that_the_exporter_hides_is_refused_all_the_same(
    before: bool, tmp_path: Path
) -> None:
    net = fx.symbolic_trace(trained(Gated(before)))
    report = write_onnx(net, tmp_path / "net.onnx", IMAGE)
    lint_onnx(report.path)
    with pytest.raises(Refused, match="multiplies by zeros and ones: 'mul' at"):
        refuse_masks(report, {})
    with pytest.raises(Refused, match="multiplies by zeros and ones"):
        write_bundle(net, tmp_path / "out", IMAGE, BundleContents("gated", unpruned=Base))
    refuse_masks(report, base_operators(report, net, IMAGE, lambda: net))
