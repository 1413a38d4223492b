"""Where the time goes that following the MACs would have saved: a sum that adds up.

    measured time = dense time x kept share of the MACs + the items below

Every part of a run is held against its dense counterpart times the network's kept share, so that
the items add up to the whole gap whatever was measured. Inside one layer what was measured comes
first (what padding its channels saved), then what is only estimated, and never more than the layer
takes beyond its own MACs; what is left has an item of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from polarprune_deploy.layers.layer_alignment import Pair
from polarprune_deploy.layers.layer_times import Measured, NetworkTimes, Padded

Cause = Literal[
    "where", "multiples", "rounding", "memory", "rate", "layout", "others", "launches", "rest",
    "better",
]  # fmt: skip
LAYOUT_OPERATORS = frozenset(
    [
        "ReorderInput",
        "ReorderOutput",
        "Transpose",
        "Reformat",
        "Cast",
        "QuantizeLinear",
        "DequantizeLinear",
        "NoOp",
        "aten::contiguous",
        "aten::_to_copy",
        "aten::copy_",
        "aten::clone",
    ]
)
"""They compute nothing: they bring data into another layout or type."""
FREE = 1.05
"""A layer padded to more channels costs the same up to here: two profiles differ by as much."""


@dataclass(frozen=True)
class Item:
    """One part of the gap, in ms of a run.

    `measured` is False for what is estimated, at least in part, and for what is left after that.
    """

    cause: Cause
    ms: float
    measured: bool


@dataclass(frozen=True)
class LayerCost:
    """A layer's part of it: what it takes beyond its MACs, by cause. Times in ms."""

    pair: Pair
    multiples: float = 0.0
    rounding: float = 0.0
    memory: float = 0.0
    rate: float = 0.0
    padded_ms: float | None = None
    padded_widths: tuple[int, int] | None = None
    free_widths: tuple[int, int] | None = None

    @property
    def better(self) -> float:
        """What it takes less than its MACs, as a number below zero."""
        return min(0.0, self.pair.excess_ms)


@dataclass(frozen=True)
class Budget:
    """`expected_ms` and the items' ms add up to `measured_ms`."""

    dense_ms: float
    measured_ms: float
    kept_macs: float
    expected_ms: float
    items: tuple[Item, ...]
    layers: tuple[LayerCost, ...]

    @property
    def gap_ms(self) -> float:
        """What there is to explain; below zero where it is faster than its MACs."""
        return self.measured_ms - self.expected_ms

    def ms(self, cause: Cause) -> float:
        """The item of this cause."""
        return sum(item.ms for item in self.items if item.cause == cause)


def make_budget(measured: Measured, pairs: Sequence[Pair], best: Padded | None) -> Budget:
    """Split the gap.

    Args:
        measured: both sides' times.
        pairs: their layers, aligned.
        best: the padded network that took least, if that is less than the pruned one; what its
            layers take less is what the counts cost.
    """
    dense, pruned = measured.dense, measured.pruned
    kept = pruned.macs / dense.macs if dense.macs else 1.0
    costs = [_layer_cost(pair, measured, best) for pair in pairs]
    dense_layers = sum(pair.dense_ms for pair in pairs)
    where = sum(pair.by_macs_ms for pair in pairs) - kept * dense_layers
    (layout, others), (dense_layout, dense_others) = _other(pruned), _other(dense)
    launches = measured.launch_ms * (len(pruned.kernels) - kept * len(dense.kernels))
    between = pruned.between_ms - kept * dense.between_ms
    whole = all(padded.run_ms is not None for padded in measured.padded)
    items = (
        Item("where", where, True),
        Item("multiples", sum(cost.multiples for cost in costs), whole),
        Item("rounding", sum(cost.rounding for cost in costs), False),
        Item("memory", sum(cost.memory for cost in costs), False),
        Item("rate", sum(cost.rate for cost in costs), False),
        Item("better", sum(cost.better for cost in costs), True),
        Item("layout", layout - kept * dense_layout, True),
        Item("others", others - kept * dense_others, True),
        Item("launches", launches, False),
        Item("rest", between - launches, False),
    )
    return Budget(dense.run_ms, pruned.run_ms, kept, kept * dense.run_ms, items, tuple(costs))


def _other(times: NetworkTimes) -> tuple[float, float]:
    """Time of kernels of no layer: changes of layout, and the others."""
    layout = others = 0.0
    for operator, (ms, _) in times.other_ms().items():
        if operator in LAYOUT_OPERATORS:
            layout += ms
        else:
            others += ms
    return layout, others


def _layer_cost(pair: Pair, measured: Measured, best: Padded | None) -> LayerCost:
    layer, left = pair.pruned, max(0.0, pair.excess_ms)
    if layer is None:
        return LayerCost(pair)

    def take(ms: float) -> float:
        nonlocal left
        taken = min(max(ms, 0.0), left)
        left -= taken
        return taken

    name, padded_ms, widths = layer.name, None, None
    if best is not None and best.macs.get(name, 0) > layer.macs:
        padded_ms, widths = best.layer_ms[name], best.widths[name]
    least = pair.pruned_ms if padded_ms is None else min(padded_ms, pair.pruned_ms)
    multiples = take(pair.pruned_ms - least)
    free = max(
        (p for p in measured.padded if p.layer_ms.get(name, 2 * FREE * least) <= FREE * least),
        key=lambda p: p.macs[name],
        default=None,
    )
    free_macs = layer.macs if free is None else max(free.macs[name], layer.macs)
    rounding = take(least * (1.0 - layer.macs / free_macs)) if free_macs else 0.0
    memory = 0.0
    # A layer above the roof shows that it was measured too low, and waits for nothing known.
    roof = measured.roof
    if roof.bound(layer) == "memory" and roof.share(layer, pair.pruned_ms) <= 1:
        memory = take(measured.roof.memory_ms(layer) - pair.by_macs_ms)
    return LayerCost(
        pair, multiples, rounding, memory, left, padded_ms, widths,
        free.widths[name] if free is not None and free_macs > layer.macs else None,
    )  # fmt: skip
