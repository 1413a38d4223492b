"""Predicted latency of decisions against a sum over the layers that are really there afterwards."""

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import Recipe, recipes
from reference import random_decisions
from torch import Tensor, nn

import polarprune
from polarprune.errors import Refused
from polarprune.gates import GatedNetwork
from polarprune.graph.geometry import Geometry
from polarprune.latency_cost import LatencyCircuit
from polarprune.latency_table import Slope

FACTOR, FIXED_MS = 1.37, 0.11
Key = tuple[object, ...]


def layer_ms(key: Key, inputs: int, outputs: int, pairs: float) -> float:
    """A time that no two kinds of layers share, and in which every count tells."""
    part = [math.modf(abs(math.sin(1 + number + hash(key) % 9973)))[0] for number in range(4)]
    return 0.1 + part[0] + part[1] * inputs + part[2] * outputs + part[3] * pairs


class MadeUpTable:
    """What LatencyCircuit asks of a table, with a formula in place of measurements."""

    head: Mapping[str, object] = {"model": "made up"}
    factor, fixed_ms = FACTOR, FIXED_MS

    def __init__(self, gated: GatedNetwork) -> None:
        self.points = {cost.geometry for cost in gated.analysis.costs}

    def layer(self, geometry: Geometry, inputs: float, outputs: float, align: int) -> Slope:
        assert (inputs, outputs, align) == (round(inputs), round(outputs), 1)
        key = (geometry.kind, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation,
               geometry.size)  # fmt: skip
        pairs = inputs * outputs
        if geometry.group is not None:
            groups = outputs / geometry.group[1]
            inputs = groups * geometry.group[0]
            pairs = groups * geometry.group[0] * geometry.group[1]
        return Slope(layer_ms(key, inputs, outputs, pairs), 0.0, 0.0)


def summed_ms(net: nn.Module, x: Tensor) -> float:
    """The reference: every call of a layer in one forward, by what the layer says of itself."""
    total = 0.0

    def look(layer: nn.Module, args: tuple[Tensor, ...], _result: Tensor) -> None:
        nonlocal total
        shape = tuple(args[0].shape)
        if isinstance(layer, nn.Linear):
            key: Key = ("linear", (), (), (), (), (math.prod(shape[:-1]),))
            pairs = layer.in_features * layer.out_features
            total += layer_ms(key, layer.in_features, layer.out_features, pairs)
            return
        padding = layer.padding
        if padding == "same":
            padding = tuple(
                (k - 1) * d // 2 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
            )
        elif isinstance(padding, str):
            padding = (0,) * len(layer.kernel_size)
        kind = "conv_transpose" if "Transpose" in type(layer).__name__ else "conv"
        key = (kind, layer.kernel_size, layer.stride, padding, layer.dilation, shape[2:])
        pairs = layer.in_channels * layer.out_channels / layer.groups
        total += layer_ms(key, layer.in_channels, layer.out_channels, pairs)

    hooks = [
        layer.register_forward_hook(look)
        for layer in net.modules()
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    ]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return FACTOR * total + FIXED_MS


def check(net: nn.Module, x: Tensor, seed: int, channels: float, blocks: float) -> None:
    gated = polarprune.attach_gates(net, x, method="random")
    circuit = LatencyCircuit(gated.analysis, gated.circuit, MadeUpTable(gated))
    decisions = random_decisions(gated.sites, seed, channels, blocks)
    try:
        gated.set_decisions(decisions)
    except ValueError:  # they leave something without inputs
        return
    expected = summed_ms(polarprune.collapse(gated).eval(), x[:1])
    in_order = [decisions[site.name] for site in gated.sites]
    assert circuit.exact_ms(in_order) == pytest.approx(expected, rel=1e-9)
    gated.set_decisions({})  # dense, but for channels that are zero whatever the weights are
    dense = summed_ms(polarprune.collapse(gated).eval(), x[:1])
    assert circuit.dense_ms == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "side"), [("resnet20", 32), ("torchvision:mobilenet_v2", 64), ("unet", 32)]
)
@given(seed=st.integers(0, 10**6), channels=st.sampled_from([0.2, 0.6]))
@settings(max_examples=2)
def test_the_sum_over_the_layers_of_real_networks(
    name: str, side: int, seed: int, channels: float
) -> None:
    torch.manual_seed(0)
    net = polarprune.build_network(name, num_classes=10).eval()
    check(net, torch.randn(1, 3, side, side), seed, channels, 0.6)


@given(recipe=recipes(), seed=st.integers(0, 10**6), channels=st.sampled_from([0.3, 0.8]))
@settings(max_examples=20)
def test_the_sum_over_the_layers_of_random_networks(
    recipe: Recipe, seed: int, channels: float
) -> None:
    try:
        check(recipe.network().eval(), recipe.image(), seed, channels, 0.7)
    except Refused:
        return
