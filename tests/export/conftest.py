"""Small networks of plain layers, and the bundles that several tests read."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from polarprune.manifest import Preprocessing
from polarprune_export.bundle import BundleContents, write_bundle
from polarprune_export.onnx_writer import OnnxReport, write_onnx


class ResidualNet(nn.Module):
    """Two residual blocks, the second with an option-A shortcut (slice, then pad channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.one_bn = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.two_bn = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.stem_bn(self.stem(x)))
        x = nn.functional.relu(self.one_bn(self.one(x)) + x)
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = nn.functional.relu(self.two_bn(self.two(x)) + shortcut)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def with_statistics(net: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every normalisation statistics and an affine part that are far from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, low, high in (
                ("running_mean", -0.5, 0.5),
                ("running_var", 0.5, 2.0),
                ("weight", 0.5, 1.5),
                ("bias", -0.5, 0.5),
            ):
                tensor = getattr(module, name)
                if tensor is not None:
                    tensor.data.copy_(
                        torch.empty(tensor.shape).uniform_(low, high, generator=generator)
                    )
    return net


@pytest.fixture(scope="session")
def plain() -> fx.GraphModule:
    """A traced residual network; tests must not change it."""
    torch.manual_seed(0)
    return fx.symbolic_trace(with_statistics(ResidualNet()).eval())


@pytest.fixture(scope="session")
def example() -> Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def contents() -> BundleContents:
    return BundleContents(
        name="residual",
        preprocessing=Preprocessing(32, 32, 32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)),
        classes=tuple("abcdefghij"),
    )


@pytest.fixture(scope="session")
def onnx_report(
    plain: fx.GraphModule, example: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> OnnxReport:
    """The residual network, exported once; tests must not change the file."""
    return write_onnx(plain, tmp_path_factory.mktemp("onnx") / "model.onnx", example)


@pytest.fixture
def written_before(onnx_report: OnnxReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `write_bundle` copy the file above: the exporter takes 2 s and is not the subject."""

    def copy(dense: nn.Module, path: Path, example: Tensor, *, opset: int) -> OnnxReport:
        assert opset == onnx_report.opset
        shutil.copy(onnx_report.path, path)
        return dataclasses.replace(onnx_report, path=path)

    monkeypatch.setattr("polarprune_export.bundle.write_onnx", copy)


@pytest.fixture(scope="session")
def pristine_bundle(
    plain: fx.GraphModule,
    example: Tensor,
    contents: BundleContents,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle with an engine, shared: read it, or copy it with `bundle`."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("shared") / "bundle"
    write_bundle(plain, folder, example, contents, batch=(1, 4, 8), engine="tensorrt_rtx")
    return folder


@pytest.fixture
def bundle(pristine_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the shared bundle that a test may damage."""
    return Path(shutil.copytree(pristine_bundle, tmp_path / "bundle"))
