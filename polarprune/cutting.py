"""Which closed units leave the network while training goes on, and when."""

import bisect
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polarprune.budget import Budget
from polarprune.decisions import macs_of
from polarprune.gates import GatedNetwork


@dataclass(frozen=True)
class CutRule:
    """When a cut may be made, and of what.

    A unit leaves once it has been closed for every input of every batch for `patience`; until then
    it may open again. A batch that opens it for more than `reopened` of its inputs starts the count
    anew; one that opens it for fewer neither counts nor starts anew, so that a single stray image
    does not undo a long wait.

    Attributes:
        patience: fraction of all steps, of which there are at least `least_steps`.
        reopened: share of a batch, 0..1.
        least: share of the dense MACs that a cut has to free: each costs a recompile.
    """

    patience: float = 0.02
    least_steps: int = 10
    reopened: float = 0.05
    least: float = 0.02

    def steps(self, total_steps: int) -> int:
        """How many steps a unit waits."""
        return max(self.least_steps, int(self.patience * total_steps))


class ClosedFor:
    """Per unit, all sites one after the other: for how many steps it has been closed."""

    def __init__(self, units: list[int], reopened: float) -> None:
        """Start at zero for sites of so many units."""
        self.units = units
        self.reopened = reopened
        self.steps: Int[Tensor, " all"] = torch.zeros(sum(units), dtype=torch.long)

    def see(self, openness: Float[Tensor, " all"]) -> None:
        """Count one batch, by how open it found each unit."""
        opened = openness.detach()
        steps = self.steps.to(opened.device)
        self.steps = torch.where(opened > self.reopened, 0, steps + (opened == 0))

    def by_site(self) -> list[Int[Tensor, " g"]]:
        """The counts of each site."""
        return list(torch.split(self.steps.cpu(), self.units)) if self.units else []


def choose_cut(
    gated: GatedNetwork, closed_for: ClosedFor, wait: int, budget: Budget, least: float
) -> dict[str, Tensor] | None:
    """What is left when the units that have been closed long enough go; None: not worth a cut.

    The least open ones go first, as many as keep the network at or above the budget; of a channel
    site a multiple of the alignment stays, and never nothing.

    Args:
        wait: steps that a unit must have been closed.
        budget: what the network keeps at least, whatever else is closed.
        least: MACs that the cut has to free.

    Returns:
        Per site a bool tensor (units,), False = out of the network.
    """
    gone = list(gated.gone().values())
    scores = [gate.running.detach().cpu() for gate in gated.site_gates()]
    waiting = [
        (float(score[unit]), place, unit)
        for place, (score, steps, out) in enumerate(
            zip(scores, closed_for.by_site(), gone, strict=True)
        )
        for unit in torch.nonzero((steps >= wait) & ~out).flatten().tolist()
    ]
    waiting.sort()

    def left(count: int) -> list[Tensor]:
        kept = [~out for out in gone]
        for _, place, unit in waiting[:count]:
            kept[place][unit] = False
        for place, site in enumerate(gated.sites):
            if site.kind == "channel":
                kept[place] = _aligned(kept[place], ~gone[place], scores[place], gated.align)
        return kept

    def macs(count: int) -> int:
        return macs_of(gated.circuit, left(count))

    # More units cost less: the most of them with which the network still is at the bound.
    counts = range(len(waiting) + 1)
    most = bisect.bisect_right(counts, -budget.bound, key=lambda n: -budget.cost(left(n))) - 1
    if most < 1 or macs(0) - macs(most) < least:
        return None
    return {site.name: kept for site, kept in zip(gated.sites, left(most), strict=True)}


def _aligned(kept: Tensor, there: Tensor, score: Float[Tensor, " g"], align: int) -> Tensor:
    """Keep the likeliest of what would go, up to a multiple of the alignment; one at least."""
    if not there.any():
        return kept
    count = min(int(there.sum()), max(1, -(-int(kept.sum()) // align)) * align)
    ranked = torch.where(kept, score + 2, torch.where(there, score, score.new_tensor(-1.0)))
    result = torch.zeros_like(kept)
    result[torch.argsort(ranked, descending=True, stable=True)[:count]] = True
    return result


def left_of(gated: GatedNetwork, gone: dict[str, list[int]]) -> dict[str, Tensor]:
    """Per site a bool tensor (units,), False for the units that are named: decisions to cut by."""
    left = {site.name: torch.ones(site.units, dtype=torch.bool) for site in gated.sites}
    for name, units in gone.items():
        left[name][units] = False
    return left
