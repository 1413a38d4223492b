"""Which layer of the pruned network was which layer of the dense one."""

from dataclasses import dataclass
from difflib import SequenceMatcher

from polarprune_deploy.layers.layer_times import Layer, NetworkTimes

# Of the smaller network's layers; below it names mean nothing, as where two exporters were at work.
ENOUGH_NAMES = 0.5
GREW = 1.05


@dataclass(frozen=True)
class Pair:
    """One layer before and after; a side that has it not is None. Times in ms, 0 for None."""

    dense: Layer | None
    pruned: Layer | None
    dense_ms: float
    pruned_ms: float

    @property
    def name(self) -> str:
        """The pruned network's name for it, as that is the one to be changed."""
        layer = self.pruned or self.dense
        assert layer is not None
        return layer.name

    @property
    def kept_macs(self) -> float:
        """Share of its MACs that is left; 0 for a layer that is gone."""
        if self.dense is None:
            return 1.0
        return (self.pruned.macs / self.dense.macs) if self.pruned and self.dense.macs else 0.0

    @property
    def by_macs_ms(self) -> float:
        """What it would take if its time had followed its MACs."""
        return self.dense_ms * self.kept_macs

    @property
    def excess_ms(self) -> float:
        """What it takes beyond that; below zero where it did better."""
        return self.pruned_ms - self.by_macs_ms

    @property
    def grew(self) -> bool:
        """Slower although it is smaller, and by more than two profiles differ anyway."""
        smaller = self.dense and self.pruned and self.pruned.macs < self.dense.macs
        return bool(smaller) and self.pruned_ms > GREW * self.dense_ms


def align(dense: NetworkTimes, pruned: NetworkTimes) -> tuple[list[Pair], str]:
    """Pairs in the dense network's order, and how they were found: "name" or "order and shape".

    By name where at least half of the smaller network's layers are found so; else as the longest
    common subsequence of what a layer keeps when it loses channels.
    """
    before = {layer.name: layer for layer in dense.layers}
    after = {layer.name: layer for layer in pruned.layers}
    common = [name for name in before if name in after]
    if len(common) >= ENOUGH_NAMES * max(1, min(len(before), len(after))):
        partner, how = {name: name for name in common}, "name"
    else:
        partner, how = _by_order(dense.layers, pruned.layers), "order and shape"
    times = (dense.layer_ms(), pruned.layer_ms())
    pairs = []
    for name, layer in before.items():
        other = after[partner[name]] if name in partner else None
        ms = times[1][other.name] if other else 0.0
        pairs.append(Pair(layer, other, times[0][name], ms))
    new = [layer for name, layer in after.items() if name not in set(partner.values())]
    pairs += [Pair(None, layer, 0.0, times[1][layer.name]) for layer in new]
    return pairs, how


def _by_order(dense: tuple[Layer, ...], pruned: tuple[Layer, ...]) -> dict[str, str]:
    before, after = ([layer.signature for layer in side] for side in (dense, pruned))
    matcher = SequenceMatcher(a=before, b=after, autojunk=False)
    return {
        dense[match.a + i].name: pruned[match.b + i].name
        for match in matcher.get_matching_blocks()
        for i in range(match.size)
    }
