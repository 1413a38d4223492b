"""Channels of one site that come apart when blocks are left out.

All tensors of a site are cut together because they are tied: a convolution's output through the
slice that is taken of it, the addition behind that, and so on. A tie that runs through a branch
goes with the branch, and what it held together falls into parts. Each part is needed where a mixing
operator reads one of its tensors, or where a part is that is still tied to it.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, fx

from polarprune.graph.class_groups import ALWAYS
from polarprune.graph.labels import connected
from polarprune.graph.sites import Analysis

Openness = Tensor | float


@dataclass(frozen=True)
class Tie:
    """Two parts that are tied while a node is live and, if it is one's branch, a block is open."""

    left: int
    right: int
    node: str
    block: int | None


@dataclass
class SiteParts:
    """The parts of one site: which nodes carry each, who reads each, what ties them."""

    part_of: dict[str, int] = field(default_factory=dict)
    readers: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    ties: list[Tie] = field(default_factory=list)
    count: int = 0

    def needed(self, live: dict[str, Openness], probabilities: list[Tensor]) -> list[Openness]:
        """Per part the probability that something reads it, itself or over its ties.

        Exact where everything is 0 or 1; in between the likeliest way counts.
        """
        found: list[Openness] = [
            any_of([live.get(reader, 0.0) for reader in self.readers[part]])
            for part in range(self.count)
        ]
        for _ in range(self.count - 1 if self.ties else 0):
            for tie in self.ties:
                holds = live.get(tie.node, 0.0)
                if tie.block is not None:
                    holds = times(holds, probabilities[tie.block][0])
                left, right = found[tie.left], found[tie.right]
                found[tie.left] = larger(left, times(holds, right))
                found[tie.right] = larger(right, times(holds, left))
        return found


def parts_of_sites(
    analysis: Analysis, graph: fx.Graph, certain: set[str], mixing: set[str]
) -> dict[int, SiteParts]:
    """The sites that can come apart while a node that carries them stays, with their parts.

    Args:
        certain: nodes that are computed whatever is decided.
        mixing: nodes that read channels and give new ones.
    """
    carriers = _carriers(analysis, graph)
    branches = {a.addition: (a.shortcut, site) for site, a in analysis.additions.items()}
    found: dict[int, SiteParts] = {}
    for site in _parted_sites(carriers, graph):
        nodes = [node for node in graph.nodes if site in carriers.get(node, ())]
        place = {node: i for i, node in enumerate(nodes)}
        fixed: list[tuple[int, int]] = []
        loose: list[tuple[int, int, str, int | None]] = []
        for node in nodes:
            if node.name in mixing:
                continue
            shortcut, block = branches.get(node.name, ("", None))
            for source in node.all_input_nodes:
                if source in place:
                    own = block if block is not None and source.name != shortcut else None
                    if own is None and node.name in certain:
                        fixed.append((place[source], place[node]))
                    else:
                        loose.append((place[source], place[node], node.name, own))
        pairs = np.asarray(fixed, dtype=np.int64).reshape(-1, 2)
        _, of = np.unique(connected(len(nodes), pairs[:, 0], pairs[:, 1]), return_inverse=True)
        parts = SiteParts(count=int(of.max()) + 1)
        parts.part_of = {node.name: int(of[i]) for node, i in place.items()}
        parts.ties = [Tie(int(of[a]), int(of[b]), name, block) for a, b, name, block in loose]
        pinners: frozenset[str] = frozenset()
        if site >= len(analysis.sites):
            pinners = analysis.held[site - len(analysis.sites)].pinned_by
        for node in nodes:
            names = [node.name, ALWAYS, *(user.name for user in node.users)]
            readers = [name for name in names if name in pinners]
            readers += [name for name in names[2:] if name in mixing and name not in pinners]
            parts.readers[int(of[place[node]])] += readers
        found[site] = parts
    return found


def _carriers(analysis: Analysis, graph: fx.Graph) -> dict[fx.Node, frozenset[int]]:
    """The sites and groups that lie in each node's result; of a chunk, in what it parts."""
    tensors = analysis.labels.tensors
    found: dict[fx.Node, frozenset[int]] = {}
    for node in graph.nodes:
        if node.name in tensors:
            found[node] = frozenset(analysis.places_at(tensors[node.name].ids).tolist())
        elif node.all_input_nodes and any(user.name in tensors for user in node.users):
            found[node] = found.get(node.all_input_nodes[0], frozenset())
    return found


def _parted_sites(carriers: dict[fx.Node, frozenset[int]], graph: fx.Graph) -> list[int]:
    """Sites of a tensor of which some reader takes only a part."""
    found: set[int] = set()
    for node in graph.nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if (
            node in carriers
            and source in carriers
            and getattr(node.target, "__name__", "") == ("getitem")
        ):
            whole = carriers[source]
            if carriers[node] != whole:
                found |= whole
    return sorted(found - {-1})


def any_of(parts: list[Openness]) -> Openness:
    """P(at least one), independent parts; a certain one settles it."""
    if any(isinstance(part, float) and part == 1.0 for part in parts):
        return 1.0
    missed: Openness = 1.0
    for part in parts:
        missed = missed * (1.0 - part)
    return 1.0 - missed


def times(left: Openness, right: Openness) -> Openness:
    """The product; a certain factor leaves the other one as it is."""
    if isinstance(left, float) and left == 1.0:
        return right
    return left * right


def larger(left: Openness, right: Openness) -> Openness:
    """The larger one, differentiable."""
    return left if plain_number(left) >= plain_number(right) else right


def plain_number(value: Openness) -> float:
    """The plain number, cut off from the gradient."""
    return float(value.detach()) if isinstance(value, Tensor) else value
