"""Scales and shifts by constants, folded behind and in front of layers."""

from collections.abc import Callable

import pytest
import torch
from folding_checks import FLOAT64_TOLERANCE, error_of_folding, norms_left, randomised
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from polarprune.lowering import plain_network
from polarprune_export.folding import fold_batchnorms

Compute = Callable[["Layers", Tensor], Tensor]


class Layers(nn.Module):
    """Layers and constants to write a forward with."""

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, bias=False)
        self.biased = nn.Conv2d(4, 6, 3)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.linear = nn.Linear(4, 6)
        self.plain_linear = nn.Linear(4, 6, bias=False)
        self.narrow = nn.Conv2d(6, 4, 1, groups=2)
        self.padded = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.same = nn.Conv2d(4, 6, (1, 3), padding="same")
        self.point = nn.Conv2d(4, 6, 1, padding="same", bias=False)
        self.mirrored = nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")
        self.norm, self.norm4 = nn.BatchNorm2d(6), nn.BatchNorm2d(4)
        self.norm1 = nn.BatchNorm1d(4)
        self.loose = nn.BatchNorm2d(4, track_running_stats=False)
        self.gamma = nn.Parameter(torch.rand(6, 1, 1))
        self.beta = nn.Parameter(torch.rand(1, 6, 1, 1))
        self.flat = nn.Parameter(torch.rand(6))
        self.one = nn.Parameter(torch.rand(()))
        self.gamma4 = nn.Parameter(torch.rand(4, 1, 1))
        self.flat4 = nn.Parameter(torch.rand(4))
        self.places = nn.Parameter(torch.rand(1, 6, 7, 7))
        self.register_buffer("constant", torch.rand(1, 6, 1, 1))
        self.register_buffer("kept", torch.tensor([1.0, 0, 1, 0, 1, 1]).view(6, 1, 1))
        self.register_buffer("precise", torch.rand(6, 1, 1))
        self.drop, self.depth = nn.Dropout(), StochasticDepth(0.5, "row")
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def network(compute: Compute) -> fx.GraphModule:
    net = Layers(compute)
    kept = net.kept.clone()
    traced = randomised(net)
    if hasattr(traced, "kept"):
        traced.kept = kept
    return traced


IMAGE, ROWS = (2, 4, 9, 9), (2, 5, 4)


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


BEHIND: dict[str, tuple[Compute, tuple[int, ...]]] = {
    "x * gamma": (lambda m, x: m.conv(x) * m.gamma, IMAGE),
    "gamma * x, biased": (lambda m, x: m.gamma * m.biased(x), IMAGE),
    "x.mul(buffer)": (lambda m, x: m.biased(x).mul(m.constant), IMAGE),
    "x * flat.view": (lambda m, x: m.grouped(x) * m.flat.view(1, -1, 1, 1), IMAGE),
    "x * flat[None, :, None, None]": (lambda m, x: m.conv(x) * m.flat[None, :, None, None], IMAGE),
    "x / gamma": (lambda m, x: m.biased(x) / m.gamma, IMAGE),
    "x * 0.7": (lambda m, x: m.biased(x) * 0.7, IMAGE),
    "x * scalar parameter": (lambda m, x: torch.mul(m.up(x), m.one), IMAGE),
    "x + beta": (lambda m, x: m.conv(x) + m.beta, IMAGE),
    "beta + x, transposed": (lambda m, x: torch.add(m.beta, m.up(x)), IMAGE),
    "x - 0.25": (lambda m, x: m.biased(x) - 0.25, IMAGE),
    "affine": (lambda m, x: m.grouped(x) * m.gamma + m.beta, IMAGE),
    "addcmul": (lambda m, x: torch.addcmul(m.beta, m.gamma, m.up(x)), IMAGE),
    "norm, then scale": (lambda m, x: (m.norm(m.conv(x)) * m.gamma + m.beta) * 0.5, IMAGE),
    "scale, then norm": (lambda m, x: m.norm(m.drop(m.up(x) * m.gamma)), IMAGE),
    "linear, channels last": (lambda m, x: m.linear(x) * m.flat, ROWS),
    "linear without bias": (lambda m, x: m.flat * m.plain_linear(x) + m.flat, ROWS),
    "linear, permuted": (lambda m, x: m.linear(last(x)).permute(0, 3, 1, 2) * m.gamma, IMAGE),
    "linear, transposed twice": (
        lambda m, x: m.gamma * m.linear(last(x)).transpose(-1, 2).transpose(1, 2) + m.beta,
        IMAGE,
    ),
    "linear, permuted, norm": (lambda m, x: m.norm(m.linear(last(x)).permute(0, 3, 1, 2)), IMAGE),
}
IN_FRONT: dict[str, tuple[Compute, tuple[int, ...]]] = {
    "scale": (lambda m, x: m.conv(x * m.gamma4), IMAGE),
    "scale before padding": (lambda m, x: m.padded(m.gamma4 * x), IMAGE),
    "scale, grouped": (lambda m, x: m.grouped(x / m.gamma4), IMAGE),
    "scale, transposed": (lambda m, x: m.up(x * m.gamma4), IMAGE),
    "affine, no padding": (lambda m, x: m.conv(x * m.gamma4 - m.gamma4), IMAGE),
    "affine, grouped": (lambda m, x: m.grouped(torch.addcmul(m.gamma4, x, m.gamma4)), IMAGE),
    "affine, mirrored": (lambda m, x: m.mirrored(x * 0.3 + m.gamma4), IMAGE),
    "affine, linear": (lambda m, x: m.plain_linear(x * m.flat4 + m.flat4), ROWS),
    "norm, 1x1": (lambda m, x: m.point(m.norm4(x)), IMAGE),
    "norm, 3x3 without padding": (lambda m, x: m.grouped(m.norm4(x)), IMAGE),
    "norm, linear": (lambda m, x: m.linear(m.norm1(x)), (3, 4)),
    "norm and scale": (lambda m, x: m.biased(m.norm4(x) * m.gamma4), IMAGE),
    "between two, the first read elsewhere": (
        lambda m, x: (lambda y: m.narrow(m.norm(y)).mean() + y)(m.conv(x)),
        IMAGE,
    ),
    "behind and in front": (lambda m, x: m.narrow(m.norm(m.conv(x * m.gamma4)) * 2.5), IMAGE),
}
CASES = {**BEHIND, **{f"in front: {name}": case for name, case in IN_FRONT.items()}}
ARITHMETIC = ("add", "mul", "sub", "div", "addcmul", "batch_norm")


def arithmetic(net: fx.GraphModule) -> list[str]:
    """What is left of norms and of arithmetic with a constant."""
    left = [n.name for n in net.graph.nodes if n.op == "get_attr"]
    left += [
        n.name
        for n in net.graph.nodes
        if n.op in ("call_function", "call_method")
        and getattr(n.target, "__name__", n.target) in (*ARITHMETIC, "truediv")
        and len(n.all_input_nodes) < 2
    ]
    return left + ["norm"] * norms_left(net)


@pytest.mark.parametrize("name", CASES)
def test_a_map_of_single_channels_is_gone_and_the_network_the_same(name: str) -> None:
    compute, shape = CASES[name]
    net = network(compute)
    folded, unfolded = fold_batchnorms(net, torch.randn(shape))
    assert arithmetic(folded) == []
    if "elsewhere" not in name:
        assert unfolded == []
    assert error_of_folding(net, torch.randn(shape)) < FLOAT64_TOLERANCE
    reads = {n.target for n in folded.graph.nodes if n.op == "get_attr"}
    assert {n for n, _ in folded.named_parameters() if "." not in n} <= reads


def test_stochastic_depth_and_dropouts_do_not_hide_a_layer() -> None:
    torch.manual_seed(0)
    net = Layers(lambda m, x: m.depth(m.point(m.drop(m.depth(m.norm4(x))))) * m.gamma).double()
    plain = plain_network(net.eval(), torch.randn(IMAGE, dtype=torch.float64))
    assert any(isinstance(module, StochasticDepth) for module in plain.modules())
    folded, unfolded = fold_batchnorms(plain, torch.randn(IMAGE, dtype=torch.float64))
    assert [n.op for n in folded.graph.nodes] == ["placeholder", "call_module", "output"]
    assert unfolded == []
    assert error_of_folding(plain, torch.randn(IMAGE)) < FLOAT64_TOLERANCE


def test_several_maps_into_one_layer_round_once() -> None:
    net = network(lambda m, x: m.norm(m.conv(x)) * m.gamma / 3)
    folded, _ = fold_batchnorms(net, torch.randn(IMAGE))
    norm, gamma = net.get_submodule("norm"), net.gamma.double().view(-1, 1, 1, 1)
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    exact = net.conv.weight.double() * scale.view(-1, 1, 1, 1) * gamma / 3
    assert folded.conv.weight.dtype == torch.float32
    half = torch.finfo(torch.float32).eps / 2
    assert ((folded.conv.weight - exact).abs() <= half * exact.abs() * (1 + 1e-6)).all()


def twice(m: Layers, x: Tensor) -> Tensor:
    y = m.conv(x)
    return y * m.gamma + y


def doubled(m: Layers, x: Tensor) -> Tensor:
    return m.conv(x) * m.gamma + m.conv(x + 1).mean()


REFUSED: dict[str, tuple[Compute, str]] = {
    "read elsewhere": (twice, "read elsewhere"),
    "called twice": (doubled, "called more than once"),
    "a number a place": (lambda m, x: m.conv(x) * m.places, "not one number a channel"),
    "along another axis": (
        lambda m, x: m.conv(x[:, :, :8, :8]) * m.flat,
        "not one number a channel",
    ),
    "more images": (
        lambda m, x: m.conv(x[:1]) + m.places[:, :, :1, :1].expand(2, 6, 1, 1),
        "changes the shape",
    ),
    "a mask": (lambda m, x: m.conv(x) * m.kept, "mask of zeros and ones"),
    "shift before zeros": (lambda m, x: m.padded(x + m.gamma4), "pads with zeros"),
    "norm before zeros": (lambda m, x: m.padded(m.norm4(x)), "pads with zeros"),
    "shift before the same size": (lambda m, x: m.same(x - 0.5), "pads with zeros"),
    "shift, transposed": (lambda m, x: m.up(x + m.gamma4), "transposed"),
    "layer behind called twice": (
        lambda m, x: m.conv(x * m.gamma4) + m.conv(x),
        "called more than once",
    ),
    "norm without statistics": (lambda m, x: m.conv(m.loose(x)), "no running statistics"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_network_stays_and_is_listed(name: str) -> None:
    compute, reason = REFUSED[name]
    net = network(compute)
    _, unfolded = fold_batchnorms(net, torch.randn(IMAGE))
    assert reason in unfolded[0].reason
    assert error_of_folding(net, torch.randn(IMAGE)) == 0


UNTOUCHED: dict[str, Compute] = {
    "behind an activation": lambda m, x: torch.relu(m.conv(x)) * m.gamma,
    "read by two": lambda m, x: (lambda y: m.conv(y).mean() + m.biased(y))(x * m.gamma4),
    "a factor from the input": lambda m, x: m.conv(x) * x.mean(),
    "added with a factor": lambda m, x: torch.add(m.conv(x), m.gamma, alpha=0.5),
    "subtracted from": lambda m, x: 1.5 - m.conv(x),
    "of a constant alone": lambda m, x: m.conv(x).sum() + (m.gamma * 2.0),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_other_arithmetic_is_left_alone(name: str) -> None:
    net = network(UNTOUCHED[name])
    assert error_of_folding(net, torch.randn(IMAGE)) == 0


def test_a_layer_of_several_types_is_not_narrowed() -> None:
    net = network(lambda m, x: m.conv(x) * m.precise)
    net.precise = net.precise.double()
    x = torch.randn(IMAGE)
    folded, unfolded = fold_batchnorms(net, x)
    assert "type" in unfolded[0].reason
    assert folded(x).dtype == torch.float64


def test_layers_that_share_a_weight_are_changed_one_by_one() -> None:
    net = network(lambda m, x: m.conv(x) * m.gamma + m.biased(x))
    net.biased.weight = net.conv.weight
    assert error_of_folding(net, torch.randn(IMAGE)) < FLOAT64_TOLERANCE
