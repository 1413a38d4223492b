"""Adaptive pooling written out, against torch's own, and no Gather for it in ONNX."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from polarprune_export import check_parity, lint_onnx, write_onnx
from polarprune_export.pooling import write_pooling_out

EXACT = 1e-12
SIZES: list[tuple[tuple[int, int], object]] = [
    *[((9, 7), size) for size in (1, 2, 3, (2, 3), (3, None), (None, 4), (1, 2), (9, 7), (12, 1))],
    ((2, 2), 7),
    ((8, 12), (4, 3)),
]


class Pooled(nn.Module):
    def __init__(self, size: object, function: bool) -> None:
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(size)
        self.size, self.function = size, function

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.adaptive_avg_pool2d(x, self.size) if self.function else self.layer(x)


def uneven(image: tuple[int, int], size: object) -> bool:
    wanted = (size, size) if isinstance(size, int) else size
    return any(n % (m or n) for n, m in zip(image, wanted, strict=True))


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize(("image", "size"), SIZES)
def test_the_mean_of_each_cell_is_torchs(
    image: tuple[int, int], size: object, function: bool
) -> None:
    net = fx.symbolic_trace(Pooled(size, function)).double().eval()
    x = torch.randn(2, 3, *image, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        write_pooling_out(net, x)
        got = net(x)
    assert got.shape == expected.shape
    assert float((got - expected).abs().max() / expected.abs().max()) < EXACT
    left = "matmul" in net.code
    assert left == uneven(image, size)


@pytest.mark.parametrize(("image", "size"), [((9, 7), (2, 3)), ((2, 2), 7)])
def test_uneven_pooling_is_no_gather(image: tuple[int, int], size: object, tmp_path: Path) -> None:
    net = fx.symbolic_trace(Pooled(size, False)).eval()
    report = write_onnx(net, tmp_path / "m.onnx", torch.zeros(2, 3, *image))
    assert report.operators["MatMul"] == 2
    lint_onnx(report.path)
    check_parity(net, report.path, real_images=None)


def test_one_pooling_behind_another() -> None:
    layers = [nn.AdaptiveAvgPool2d(size) for size in (5, (2, 3), 1)]
    net = fx.symbolic_trace(nn.Sequential(*layers))
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    expected = net(x)
    write_pooling_out(net, x)
    assert all(node.op != "call_module" for node in net.graph.nodes)
    assert float((net(x) - expected).abs().max()) < EXACT


def test_other_pools_are_left_alone() -> None:
    net = fx.symbolic_trace(nn.Sequential(nn.AdaptiveMaxPool2d(3), nn.AvgPool2d(2)))
    code = net.code
    write_pooling_out(net, torch.zeros(2, 3, 8, 8))
    assert net.code == code
