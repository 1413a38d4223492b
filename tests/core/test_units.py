"""Every channel that could be cut on its own has a gate of its own: counted by brute force."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brute_force_units import count_units
from random_blocks import make
from small_networks import channel_sites
from torch import Tensor, nn

import polarprune

WIDTH = 4


class _Graph(nn.Module):
    """Four channels in, whatever the graph does, three classes."""

    def __init__(self, compute: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.compute = compute
        with torch.no_grad():
            trunk = self.trunk(torch.randn(1, 3, 6, 6))
        self.classes = nn.Linear(trunk.shape[1], 3)

    def trunk(self, x: Tensor) -> Tensor:
        return self.compute(self, F.relu(self.stem(x)))

    def forward(self, x: Tensor) -> Any:
        return self.classes(self.trunk(x).mean((2, 3)))


class _Flat(_Graph):
    def forward(self, x: Tensor) -> Any:
        return self.classes(self.trunk(x))


class _TwoHeads(_Graph):
    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x)
        return {"classes": self.classes(x.mean((2, 3))), "map": self.map(x)}


def conv(before: int = WIDTH, after: int = WIDTH, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, **options)


def idiom(name: str, **options: Any) -> nn.Module:
    return make((name, options), torch.randn(2, WIDTH, 6, 6))


def _through_half(s: Any, x: Tensor) -> Tensor:
    kept, branch = x.chunk(2, 1)
    return torch.cat([kept, F.relu(s.part(branch))], 1)


def _split_in_two(s: Any, x: Tensor) -> Tensor:
    first, second = x.split([1, 3], 1)
    return s.narrow(first) + s.wide(second)


def _shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def _shufflenet(s: Any, x: Tensor) -> Tensor:
    for branch in (s.one, s.two):
        first, second = x.chunk(2, 1)
        x = _shuffle(torch.cat((first, F.relu(branch(second))), 1))
    return x


def _dense(s: Any, x: Tensor) -> Tensor:
    x = torch.cat([x, s.one(F.relu(s.norm_one(x)))], 1)
    return torch.cat([x, s.two(F.relu(s.norm_two(x)))], 1)


def _split_attention() -> nn.Module:
    attention = idiom("split_attention")
    attention.conv = conv(WIDTH, 2 * WIDTH)  # dense; the usual one is grouped by its radix
    return attention


def _half() -> nn.Conv2d:
    return conv(2, 2)


# name -> (graph, units counted by hand)
GRAPHS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "chain": (lambda: _Graph(lambda s, x: F.relu(s.one(x)), one=conv(after=5)), 9),
    "residual": (
        lambda: _Graph(lambda s, x: x + s.two(F.relu(s.one(x))), one=conv(after=5), two=conv(5)),
        4 + 5,
    ),
    "projection": (
        lambda: _Graph(
            lambda s, x: s.project(x) + s.two(F.relu(s.one(x))),
            one=conv(), two=conv(after=6), project=conv(after=6, kernel=1),
        ), 4 + 4 + 6,
    ),
    "option A": (
        lambda: _Graph(
            lambda s, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)) + s.two(F.relu(s.one(x))),
            one=conv(stride=2), two=conv(after=6),
        ), 6 + 4,
    ),
    "dense concatenation": (
        lambda: _Graph(
            lambda s, x: torch.cat([x, s.one(x), s.two(x)], 1), one=conv(after=2), two=conv(after=3)
        ), 4 + 2 + 3,
    ),
    "squeeze-excitation": (
        lambda: _Graph(lambda s, x: s.one(s.excite(x)), one=conv(), excite=idiom("squeeze_excite")),
        4 + 4 + 4,
    ),
    "depthwise": (
        lambda: _Graph(
            lambda s, x: s.two(F.relu(s.norm(s.one(x)))),
            one=conv(groups=4), two=conv(after=5), norm=nn.BatchNorm2d(4),
        ), 4 + 5,
    ),
    "grouped": (
        lambda: _Graph(lambda s, x: s.two(s.one(x)), one=conv(after=6, groups=2), two=conv(6)),
        2 + 4,
    ),
    "layer scale": (
        lambda: _Graph(
            lambda s, x: x + s.gamma * s.one(x), one=conv(), gamma=nn.Parameter(torch.rand(4, 1, 1))
        ), 4,
    ),
    "flatten to linear": (
        lambda: _Flat(
            lambda s, x: F.relu(s.hidden(F.max_pool2d(x, 2).flatten(1))), hidden=nn.Linear(36, 5)
        ), 4 + 5,
    ),
    "split into two branches": (
        lambda: _Graph(_split_in_two, narrow=conv(1, 5), wide=conv(3, 5)), 4 + 5,
    ),
    "one half through a branch": (
        lambda: _Graph(lambda s, x: s.last(_through_half(s, x)), part=_half(), last=conv()),
        4 + 2 + 4,
    ),
    "shuffle": (lambda: _Graph(lambda s, x: s.one(_shuffle(x)), one=conv()), 4 + 4),
    "shuffle, chunk and concatenation, twice": (
        lambda: _Graph(_shufflenet, one=_half(), two=_half()), 4 + 2 + 2,
    ),
    "pixel shuffle": (
        lambda: _Graph(
            lambda s, x: s.last(F.pixel_shuffle(s.one(x), 2)), one=conv(after=12), last=conv(3)
        ), 4 + 3 + 4,
    ),
    "transposed": (
        lambda: _Graph(lambda s, x: F.relu(s.up(x)), up=nn.ConvTranspose2d(4, 5, 2, 2)), 4 + 5,
    ),
    "two heads": (
        lambda: _TwoHeads(lambda s, x: F.relu(s.one(x)), one=conv(after=5), map=conv(5, 2)), 4 + 5,
    ),
    "shared layer": (
        lambda: _Graph(lambda s, x: s.one(F.relu(s.one(x))), one=conv()), 4,
    ),
    "product of two branches": (
        lambda: _Graph(lambda s, x: s.one(x) * torch.sigmoid(s.two(x)), one=conv(), two=conv()),
        4 + 4,
    ),
    "selective kernel": (
        lambda: _Graph(lambda s, x: s.last(s.attend(x)), attend=idiom("selective_kernel"),
                       last=conv()), 4 + 4 + 4 + 4,
    ),
    "split attention": (
        lambda: _Graph(lambda s, x: s.last(s.attend(x)), attend=_split_attention(),
                       last=conv()), 4 + 4 + 4 + 4,
    ),
    "pre-activation dense block": (
        lambda: _Graph(_dense, one=conv(after=2), two=conv(6, 2), norm_one=nn.BatchNorm2d(4),
                       norm_two=nn.BatchNorm2d(6)), 4 + 2 + 2,
    ),
}  # fmt: skip
graphs = pytest.mark.parametrize("name", list(GRAPHS))
IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@graphs
def test_brute_force_counts_what_a_pencil_counts(name: str) -> None:
    build, units = GRAPHS[name]
    assert count_units(build(), IMAGE) == units


@graphs
def test_every_unit_that_brute_force_finds_has_a_gate(name: str) -> None:
    net = GRAPHS[name][0]()
    gated = polarprune.attach_gates(net.eval(), IMAGE)
    assert sum(channel_sites(gated).values()) == count_units(net, IMAGE), channel_sites(gated)
