"""What a network would take whose gates decide for each image, if skipping were free.

No engine does it. Counted honestly: what an image's decisions leave; the gates; and the channels of
layers that have to be computed before the decision about these very channels is known, because the
gate looks at them.
"""

import torch
from torch import Tensor

from polarprune.datasets.splits import spread_indices
from polarprune.gates import GatedNetwork
from polarprune.graph.site_parts import plain_number

_COUNTED_IMAGES = 64


def dynamic_macs(gated: GatedNetwork, decided: list[Tensor]) -> float | None:
    """Mean MACs of at most 64 images, each with its own decisions; None where all have the same.

    Args:
        decided: per site (n or 1, units), True = open.
    """
    count = max((len(own) for own in decided), default=0)
    if count < 2:
        return None
    chosen = spread_indices(count, _COUNTED_IMAGES)
    each = [
        _macs(gated, [own[min(place, len(own) - 1)].double().cpu() for own in decided])
        for place in chosen
    ]
    return sum(each) / len(each)


@torch.no_grad()
def forecast_macs(gated: GatedNetwork) -> float | None:
    """The MACs that the method expects to end at, by the last batch; None where it has none."""
    found = gated.method.forecast(gated.units())
    return None if found is None else _macs(gated, gated.by_site(found.double().cpu()))


def _macs(gated: GatedNetwork, probabilities: list[Tensor]) -> float:
    cost = gated.circuit.evaluate(probabilities)
    total = plain_number(cost.macs) + gated.gate_macs()
    for number, site in gated.analysis.too_early:
        early = gated.analysis.costs[number]
        inputs = plain_number(cost.live[number]) * plain_number(cost.open_inputs[number])
        closed = float((1 - probabilities[site]).sum()) * early.writes[site]
        total += early.per_pair * inputs * closed / early.mix.groups
    return total
