"""What is remembered of each cut: one line of cuts.jsonl."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polarprune.gates import GatedNetwork
from polarprune.graph.comparing import in_mode


@dataclass(frozen=True)
class CutRecord:
    """One line of cuts.jsonl.

    Attributes:
        step: training steps done when the cut was made.
        sites: sites with something cut, and how many of their units went.
        agreement: share of (image, unit) decisions that were already as they were frozen.
        max_rel_error: of the check, float64, evaluation and training mode.
        metric_before / metric_after: what `measure` said of the network with its gates deciding
            and of the cut one.
        output_agreement: share of held-out images, or of their pixels, that both give one class;
            None where that has no meaning.
    """

    step: int
    sites: dict[str, int]
    units: int
    blocks_removed: int
    macs_before: int
    macs_after: int
    agreement: float
    site_agreement: dict[str, float]
    max_rel_error: float
    certificate: dict[str, Any]
    metric_before: float | None
    metric_after: float | None
    output_agreement: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """What was seen of a network before or after a cut.

    Attributes:
        metric: what the caller's `measure` said.
        outputs: on the held-out images.
    """

    metric: float | None
    outputs: Any


@torch.no_grad()
def look_at(
    net: nn.Module, images: Tensor | None, measure: Callable[[nn.Module], float] | None
) -> Look:
    """Look at a network in evaluation mode; each layer's mode is as before."""
    if images is None:
        return Look(None if measure is None else measure(net), None)
    watched = copy.deepcopy(net) if isinstance(net, GatedNetwork) else net
    with in_mode(watched, training=False):
        outputs = watched(images)
    return Look(None if measure is None else measure(net), outputs)


def agreement_of(
    gated: GatedNetwork, decisions: dict[str, Tensor], images: Tensor | None
) -> dict[str, float]:
    """Per site: share of (image, unit) pairs that are decided as they will be frozen.

    A gate that does not look at its input has all images agree by construction.
    """
    if images is None:
        return {}
    watcher = copy.deepcopy(gated).eval()
    with torch.no_grad():
        watcher(images)
    found = {}
    for site, output in zip(gated.sites, watcher.outputs(), strict=True):
        frozen = decisions[site.name].to(output.values.device)
        same = (output.values > 0.5) == frozen
        found[site.name] = 1.0 if len(output.values) == 1 else float(same.double().mean())
    return found


def mean_over_units(agreement: dict[str, float], gated: GatedNetwork) -> float:
    """The share over all units of what agreement_of says site by site; 1 where it says nothing."""
    if not agreement:
        return 1.0
    units = {site.name: site.units for site in gated.sites}
    total = sum(units[name] for name in agreement)
    return sum(value * units[name] for name, value in agreement.items()) / total
