"""Folding of collapsed random networks: the same in float64, and no norm left that could fold."""

from collections import Counter

import pytest
import torch
from random_graph_checks import decide, set_repaired, worst_error
from random_graphs import Recipe
from torch import Tensor, fx

import polarprune
from polarprune_export.folding import CONVOLUTIONS, NORMS, fold_batchnorms

EXACT = 1e-9
SEEDS = range(40)


def collapsed(seed: int) -> tuple[fx.GraphModule, Tensor]:
    recipe = Recipe.of_seed(seed)
    image = recipe.image()
    gated = polarprune.attach_gates(recipe.network(), image)
    set_repaired(gated, decide(gated, "half", seed), seed)
    return polarprune.collapse(gated.eval()).eval(), image


def foldable_norms(net: fx.GraphModule) -> list[str]:
    """Norms with statistics, directly behind a convolution that they alone read."""
    calls = Counter(str(node.target) for node in net.graph.nodes if node.op == "call_module")
    modules = dict(net.named_modules())
    return [
        node.name
        for node in net.graph.nodes
        if node.op == "call_module"
        and isinstance(modules[str(node.target)], NORMS)
        and modules[str(node.target)].running_mean is not None
        and node.args[0].op == "call_module"
        and isinstance(modules[str(node.args[0].target)], CONVOLUTIONS)
        and len(node.args[0].users) == 1
        and calls[str(node.args[0].target)] == 1
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_folded_random_network_is_the_collapsed_one(seed: int) -> None:
    net, image = collapsed(seed)
    folded, _ = fold_batchnorms(net, image)
    with torch.no_grad():
        assert worst_error(net(image), folded(image)) <= EXACT
    assert foldable_norms(folded) == []


def test_some_of_the_networks_have_what_folds() -> None:
    found = 0
    for seed in SEEDS:
        net, image = collapsed(seed)
        before, after = (len(n.graph.nodes) for n in (net, fold_batchnorms(net, image)[0]))
        found += before > after
    assert found > len(SEEDS) / 4
