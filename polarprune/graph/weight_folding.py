"""Weights of open units, put into the layers around them, so that gates are 0 or 1 from then on.

A channel is multiplied where it is read, and every mixing operator is linear in what it reads: the
weight goes into its own. A block is multiplied just before its addition: the weight goes into what
the branch ends with (factors.py). The relaxation's authors left both multiplications in the pruned
network; that they can be folded, exactly, is ours.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from polarprune.errors import Refused
from polarprune.graph.inputs_left import inputs_left
from polarprune.graph.operator_tables import TRANSPOSED
from polarprune.graph.sites import Analysis
from polarprune.graph.slicing import Origin


@torch.no_grad()
def fold_weights(
    net: fx.GraphModule,
    origins: Mapping[str, Origin],
    analysis: Analysis,
    weights: list[Tensor],
) -> None:
    """Multiply what reads each channel, and what each branch ends with, by its weight; in place.

    Args:
        net: the whole network's graph, or what is left of it; its layers are changed.
        origins: where its tensors come from in the whole network; whole ones may be missing.
        analysis: of the whole network.
        weights: per site (units,); of what is not there any more they are not looked at.

    Raises:
        Refused: a weight is computed from others; a collapsed network has none that are.

    Exactness: one rounding of each weight to the dtype of its layer.
    """
    nodes = {node.name: node for node in net.graph.nodes}
    folded: set[str] = set()
    for mix in analysis.labels.mixes:
        if mix.node not in nodes or mix.depthwise or mix.layer in folded:
            continue
        folded.add(mix.layer)
        layer = net.get_submodule(mix.layer)
        units = analysis.units_at(inputs_left(mix, layer, origins))
        if (units[:, 0] >= 0).any():
            _scale_inputs(layer, _factors(units, weights))
    called = {str(node.target) for node in net.graph.nodes}
    for place, names in analysis.takers.items():
        for name in names:
            owner, _, child = name.rpartition(".")
            if owner in called or name in called:  # else it has gone with its part of the branch
                layer = net.get_submodule(owner)
                _refuse_computed(layer)
                _multiply(getattr(layer, child), weights[place].double().reshape(()))


def _factors(units: np.ndarray, weights: list[Tensor]) -> Float[Tensor, " c"]:
    """The weight of each (site, unit), in float64; 1 where there is none."""
    found = torch.ones(len(units), dtype=torch.float64)
    for site in np.unique(units[units[:, 0] >= 0, 0]).tolist():
        here = units[:, 0] == site
        found[torch.from_numpy(here)] = weights[site].detach().cpu().double()[units[here, 1]]
    return found


def _scale_inputs(layer: nn.Module, factors: Tensor) -> None:
    """Multiply a mixing layer's weight along what it reads."""
    _refuse_computed(layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    groups = int(getattr(layer, "groups", 1))
    if isinstance(layer, TRANSPOSED):
        shaped = factors.reshape(-1, *[1] * (weight.dim() - 1))
    elif groups == 1:
        shaped = factors.reshape(1, -1, *[1] * (weight.dim() - 2))
    else:
        each = factors.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)
        shaped = each.reshape(*each.shape, *[1] * (weight.dim() - 2))
    _multiply(weight, shaped)


def _refuse_computed(layer: nn.Module) -> None:
    if parametrize.is_parametrized(layer):
        raise Refused("a weight that is computed from others cannot be folded into")


def _multiply(tensor: Tensor, factors: Tensor) -> None:
    """Multiply in float64 and round once."""
    tensor.copy_(tensor.double() * factors.to(tensor.device))
