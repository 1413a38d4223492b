"""What is remembered of each cut: one line of cuts.jsonl."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polarprune.decisions import macs_of
from polarprune.dynamic_cost import dynamic_macs
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
        dynamic_macs: mean over held-out images of what each takes by its own decisions
            (dynamic_cost.py); None where all decide alike.
        forecast_macs: what the method foresaw when the search began; None where it cannot.
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
    dynamic_macs: float | None = None
    forecast_macs: float | None = None

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


@torch.no_grad()
def decided_by_each(gated: GatedNetwork, images: Tensor | None) -> list[Tensor]:
    """Per site (n or 1, units): what the gates decide for each image; nothing without images."""
    if images is None:
        return []
    watcher = copy.deepcopy(gated).eval()
    watcher(images)
    least = 0.0 if gated.method.weighs else 0.5  # what has a weight is computed, however small
    return [output.values > least for output in watcher.outputs()]


def agreement_of(
    gated: GatedNetwork, decisions: dict[str, Tensor], decided: list[Tensor]
) -> dict[str, float]:
    """Per site: share of (image, unit) pairs that are decided as they will be frozen.

    A gate that does not look at its input decides alike for all; the target may still close more.
    """
    return {
        site.name: float((own == decisions[site.name].to(own.device)).double().mean())
        for site, own in zip(gated.sites if decided else [], decided, strict=True)
    }


def mean_over_units(agreement: dict[str, float], gated: GatedNetwork) -> float:
    """The share over all units of what agreement_of says site by site; 1 where it says nothing."""
    if not agreement:
        return 1.0
    units = {site.name: site.units for site in gated.sites}
    total = sum(units[name] for name in agreement)
    return sum(value * units[name] for name, value in agreement.items()) / total


def taken_by(
    gated: GatedNetwork, decisions: dict[str, Tensor], images: Tensor | None
) -> dict[str, Any]:
    """What of a record the decisions settle, before the cut is made.

    Args:
        images: on which agreement is measured; None once gates have stopped deciding.
    """
    gone = gated.gone()
    closed = {name: int((~kept & ~gone[name]).sum()) for name, kept in decisions.items()}
    closed = {name: count for name, count in closed.items() if count}
    decided = decided_by_each(gated, images)
    agreement = agreement_of(gated, decisions, decided)
    return {
        "sites": closed,
        "units": sum(closed.values()),
        "macs_before": macs_of(gated.circuit, [~out for out in gone.values()]),
        "macs_after": macs_of(gated.circuit, list(decisions.values())),
        "dynamic_macs": dynamic_macs(gated, decided),
        "agreement": mean_over_units(agreement, gated),
        "site_agreement": {name: round(value, 6) for name, value in agreement.items()},
    }
