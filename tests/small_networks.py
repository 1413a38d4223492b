"""Networks of a few layers, each with one thing that is easy to get wrong, and their check."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from reference import (
    Decisions,
    counted_macs,
    largest_relative_error,
    random_decisions,
    randomise,
    without_dropout,
)
from torch import Tensor, nn

import polarprune
from polarprune.decisions import macs_of
from polarprune.gates import GatedNetwork

EXACT = 1e-9


class Sign(torch.autograd.Function):
    """Its own backward: the gradient goes straight through."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Small(nn.Module):
    """Layers to build a forward from; those that it does not use are not traced."""

    def __init__(self, compute: Callable[["Small", Tensor], object], **layers: object) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 6, 3, padding=1)
        self.classes = nn.Linear(6, 4)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("constant", torch.rand(1, 8, 1, 1) + 0.5)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.compute = compute

    def forward(self, x: Tensor) -> object:
        return self.compute(self, x)

    def head(self, x: Tensor) -> Tensor:
        return self.classes(F.adaptive_avg_pool2d(self.last(x), 1).flatten(1))


def small(compute: Callable[[Small, Tensor], object], **layers: object) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Small(compute, **layers)).double()


def image(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*(shape or (2, 3, 8, 8)), dtype=torch.float64, generator=generator)


def check_exact(net: nn.Module, x: Tensor | None = None, **options: object) -> GatedNetwork:
    """Everything that has to hold for any decisions; returns the gated network."""
    x = image() if x is None else x
    net = without_dropout(net.eval())
    untouched = x.clone()
    gated = polarprune.attach_gates(net, x, **options)
    assert torch.equal(x, untouched), "the example input was changed"
    with torch.no_grad():
        assert largest_relative_error(net(x.clone()), gated(x.clone())) <= EXACT
    for seed, (channels, blocks) in enumerate([(0.5, 0.5), (0, 1), (1, 0), (0.3, 0)]):
        check_decided(gated, random_decisions(gated.sites, seed, channels, blocks), x)
    return gated


def check_decided(gated: GatedNetwork, decisions: Decisions, x: Tensor) -> nn.Module:
    """Frozen gates and what they leave agree in both modes; MACs agree; a second cut is none."""
    gated.set_decisions(decisions)
    dense = polarprune.collapse(gated)
    for training in (False, True):
        without_dropout(gated.train(training))
        without_dropout(dense.train(training))
        with torch.no_grad():
            error = largest_relative_error(gated(x.clone()), dense(x.clone()))
        assert error <= EXACT
    gated.eval()
    expected = macs_of(gated.circuit, [gated.decisions()[s.name] for s in gated.sites])
    assert expected == polarprune.count_macs(dense, x) == counted_macs(dense, x)
    again = polarprune.collapse(dense)
    assert again.code == dense.code
    assert [t.shape for t in again.state_dict().values()] == [
        t.shape for t in dense.state_dict().values()
    ]
    return dense


def reasons(gated: GatedNetwork) -> str:
    return "; ".join(f"{r.where}: {r.reason}" for r in gated.refused)


def channel_sites(gated: GatedNetwork) -> dict[str, int]:
    return {s.name: s.units for s in gated.sites if s.kind == "channel"}


def block_sites(gated: GatedNetwork) -> list[str]:
    return [s.name for s in gated.sites if s.kind == "block"]


def all_open(gated: GatedNetwork, **closed: list[int] | None) -> Decisions:
    """Everything open but these units; None closes a whole site."""
    decisions = {s.name: torch.ones(s.units, dtype=torch.bool) for s in gated.sites}
    for name, units in closed.items():
        decisions[name][slice(None) if units is None else units] = False
    return decisions
