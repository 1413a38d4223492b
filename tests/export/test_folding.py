"""Folding against the unfolded network, in float64, where only rounding can differ."""

from collections.abc import Callable

import pytest
import torch
from folding_checks import FLOAT64_TOLERANCE, error_of_folding, norms_left, randomised
from torch import Tensor, fx, nn

from polarprune_export.folding import fold_batchnorms

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
        (2, 4, 9, 9),
    ),
    "convolution with bias": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)),
        (2, 4, 9, 9),
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        (2, 4, 9, 9),
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)),
        (2, 4, 9, 9),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)),
        (2, 4, 5, 5),
    ),
    "grouped transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)),
        (2, 4, 5, 5),
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)),
        (2, 4, 9),
    ),
    "no affine part": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)),
        (2, 4, 9, 9),
    ),
    "linear": (
        lambda: nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)),
        (3, 5),
    ),
    "dropout between": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.Dropout(), nn.Identity(), nn.BatchNorm2d(6)),
        (2, 4, 9, 9),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_folded_pair_computes_the_same_without_the_norm(kind: str) -> None:
    build, shape = LAYERS[kind]
    net = randomised(build())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    folded, unfolded = fold_batchnorms(net, x)
    assert norms_left(folded) == 0
    assert unfolded == []
    assert error_of_folding(net, x) < FLOAT64_TOLERANCE


@pytest.mark.parametrize("place", ["_inner", "_outer"])
def test_the_comparison_notices_a_wrongly_folded_pair(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, shape = LAYERS["grouped transposed" if place == "_inner" else "grouped"]
    net = randomised(build())

    def naive(layer: nn.Module, vector: Tensor) -> Tensor:
        return vector[:1].view(1, 1, 1, 1)

    monkeypatch.setattr(f"polarprune_export.layer_weights.{place}", naive)
    assert error_of_folding(net, torch.randn(shape)) > 1e-3


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.bn(self.conv(x))))


@pytest.mark.parametrize(
    ("net", "shape", "reason"),
    [
        (ReadTwice(), (2, 3, 4, 4), "read elsewhere"),
        (CalledTwice(), (2, 3, 4, 4), "more than once"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
            (2, 3, 4, 4),
            "no running statistics",
        ),
        (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), (2, 3, 5), "not (n, c)"),
    ],
    ids=["read twice", "called twice", "no statistics", "linear over sequences"],
)
def test_what_cannot_be_folded_stays_and_is_listed(
    net: nn.Module, shape: tuple[int, ...], reason: str
) -> None:
    traced = randomised(net)
    folded, unfolded = fold_batchnorms(traced, torch.randn(shape))
    assert norms_left(folded) == 1
    assert reason in unfolded[0].reason
    assert error_of_folding(traced, torch.randn(shape)) == 0


def test_folding_keeps_dtype_and_leaves_the_given_network_alone(plain: fx.GraphModule) -> None:
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    folded, _ = fold_batchnorms(plain, torch.randn(1, 3, 32, 32))
    assert {p.dtype for p in folded.parameters()} == {torch.float32}
    assert norms_left(plain) == 3
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_float32_weights_are_the_float64_ones_rounded_once(plain: fx.GraphModule) -> None:
    folded, _ = fold_batchnorms(plain, torch.randn(1, 3, 32, 32))
    norm, filters = plain.get_submodule("stem_bn"), plain.get_parameter("stem.weight").double()
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    expected = (filters * scale[:, None, None, None]).float()
    got = folded.get_parameter("stem.weight")
    ulp = torch.finfo(torch.float32).eps
    assert ((got - expected).abs() <= ulp * expected.abs()).all()
