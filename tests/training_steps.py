"""Training steps that can be repeated, and how far two networks are apart after them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchvision.ops import StochasticDepth

from polarprune.gates import GatedNetwork


def loss_of(outputs: Any) -> Tensor:
    """A number that every output value moves, each another way."""
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if leaf.is_floating_point()]
    return torch.stack([_distance(leaf) for leaf in leaves]).sum()


def _distance(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    aim = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    return (output - aim).square().mean()


def without_chance(net: nn.Module) -> nn.Module:
    """Random layers that let everything pass, in training mode too."""
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth):
            module.p = 0.0
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    return net


def network_parameters(gated: GatedNetwork) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that were the network's own, by the names that the body has for them."""
    gates = {id(p) for p in gated.gate_parameters()}
    return ((n, p) for n, p in gated.body.named_parameters() if id(p) not in gates)


def largest_difference(expected: Tensor, got: Tensor) -> float:
    """Over the largest magnitude; counters must be equal."""
    assert expected.shape == got.shape, f"shapes {tuple(expected.shape)} and {tuple(got.shape)}"
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, got) else float("inf")
    assert bool(expected.isfinite().all()), "the comparison would show nothing"
    expected, got = expected.detach(), got.detach()
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return float((expected - got).abs().max()) / scale if scale else float(got.abs().sum())


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, step: int) -> float:
    """One step, with the same random numbers for the same step."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = loss_of(net(x.clone()))
    loss.backward()
    optimizer.step()
    return float(loss.detach())
