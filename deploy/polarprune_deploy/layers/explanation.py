"""The answer to "why is it not faster?", from measured times alone: no clock, no backend."""

from dataclasses import dataclass
from typing import Any

from polarprune_deploy.layers.gap_budget import Budget, LayerCost, make_budget
from polarprune_deploy.layers.layer_alignment import align
from polarprune_deploy.layers.layer_times import Measured, Padded
from polarprune_deploy.layers.worthwhile_changes import Change, best_padding, worthwhile_changes


@dataclass(frozen=True)
class Explanation:
    """One row of a bench explained. `aligned_by` is how the two sides' layers were matched."""

    measured: Measured
    budget: Budget
    aligned_by: str
    padding: Padded | None
    changes: tuple[Change, ...]

    def layers_by_cost(self) -> list[LayerCost]:
        """Layers that are left, those that take most beyond their MACs first; then those gone."""
        left = [cost for cost in self.budget.layers if cost.pair.pruned]
        gone = [cost for cost in self.budget.layers if not cost.pair.pruned]
        return sorted(left, key=lambda cost: -cost.pair.excess_ms) + gone

    def as_json(self) -> dict[str, Any]:
        """The `explanation` of a row of `bench --json`; times in ms of a run, MACs of a batch."""
        measured, budget = self.measured, self.budget
        dense, pruned = measured.dense, measured.pruned
        return {
            "dense_ms": dense.run_ms,
            "pruned_ms": pruned.run_ms,
            "noise_ms": measured.noise_ms,
            "runs": measured.runs,
            "interrupted": measured.interrupted,
            "slowed": {"dense": dense.slowed, "pruned": pruned.slowed},
            "kept_macs": budget.kept_macs,
            "by_macs_ms": budget.expected_ms,
            "budget": [
                {"cause": item.cause, "ms": item.ms, "measured": item.measured}
                for item in budget.items
            ],
            "changes": [
                {"what": c.what, "gain_ms": c.gain_ms, "measured": c.measured, "basis": c.basis}
                for c in self.changes
            ],
            "roof": {
                "macs_per_ms": measured.roof.macs_per_ms,
                "bandwidths": [list(pair) for pair in measured.roof.bandwidths],
            },
            "launch_ms": measured.launch_ms,
            "kernels": {"dense": len(dense.kernels), "pruned": len(pruned.kernels)},
            "between_ms": {"dense": dense.between_ms, "pruned": pruned.between_ms},
            "other_ms": {
                side: {op: {"ms": ms, "kernels": n} for op, (ms, n) in times.other_ms().items()}
                for side, times in (("dense", dense), ("pruned", pruned))
            },
            "padded": [{"multiple": each.multiple, "ms": each.run_ms} for each in measured.padded],
            "aligned_by": self.aligned_by,
            "layers": [self._layer_json(cost) for cost in self.layers_by_cost()],
        }

    def _layer_json(self, cost: LayerCost) -> dict[str, Any]:
        pair, roof = cost.pair, self.measured.roof
        sides = {
            side: None
            if layer is None
            else {
                "channels": [layer.in_channels, layer.out_channels],
                "macs": layer.macs,
                "bytes": layer.moved_bytes,
            }
            for side, layer in (("dense", pair.dense), ("pruned", pair.pruned))
        }
        return {
            "layer": pair.name,
            **sides,
            "dense_ms": pair.dense_ms,
            "pruned_ms": pair.pruned_ms,
            "by_macs_ms": pair.by_macs_ms,
            "excess_ms": pair.excess_ms,
            "multiples_ms": cost.multiples,
            "rounding_ms": cost.rounding,
            "memory_ms": cost.memory,
            "rate_ms": cost.rate,
            "grew": pair.grew,
            "bound": roof.bound(pair.pruned) if pair.pruned else None,
            "roof_share": roof.share(pair.pruned, pair.pruned_ms) if pair.pruned else None,
            "padded_ms": cost.padded_ms,
            "padded_channels": list(cost.padded_widths) if cost.padded_widths else None,
        }


def conclude(measured: Measured) -> Explanation:
    """Align, split the gap, and choose what to advise."""
    pairs, how = align(measured.dense, measured.pruned)
    best = best_padding(measured)
    budget = make_budget(measured, pairs, best)
    changes = tuple(worthwhile_changes(measured, budget, best))
    return Explanation(measured, budget, how, best, changes)
