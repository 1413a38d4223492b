"""What is still computed when blocks are left out: a probability for each node.

A node is live when some path from it to the output is left. Where slices part the channels of a
tensor, some of them may be needed and others not: there it is a probability for each site.
"""

import operator
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from polarprune.graph.labels import Labelled
from polarprune.graph.sites import Analysis

Openness = Tensor | float
FIXED = -1  # channels of no site


@dataclass(frozen=True)
class Live:
    """Of one evaluation: per node, and per node and site where channels part."""

    nodes: dict[str, Openness]
    by_site: dict[str, dict[int, Openness]]

    def of(self, name: str) -> Openness:
        """The probability that the node is computed."""
        return self.nodes.get(name, 0.0)

    def at(self, name: str, site: int) -> Openness | None:
        """The probability that the node's channels of a site are needed; None: as the site's."""
        return self.by_site[name].get(site, 0.0) if name in self.by_site else None


class Liveness:
    """Evaluates liveness backwards from the output."""

    def __init__(self, analysis: Analysis, graph: fx.Graph) -> None:
        """Look through one analysed graph."""
        self._block_sites = {a.addition: s for s, a in analysis.additions.items()}
        self._shortcut = {a.addition: a.shortcut for a in analysis.additions.values()}
        self._mixing = {cost.mix.node for cost in analysis.costs if not cost.mix.depthwise}
        self.nodes = [
            (node.name, [n.name for n in node.all_input_nodes], node.op == "output")
            for node in graph.nodes
        ]
        self._may_vanish = _before_concatenations(analysis, graph)
        self._sites = self._parted(analysis, graph)

    def _parted(self, analysis: Analysis, graph: fx.Graph) -> dict[str, frozenset[int]]:
        """The sites of each tensor that a slice of channels is (indirectly) taken of."""
        tensors = analysis.labels.tensors
        sites: dict[str, frozenset[int]] = {}

        def sites_of(node: fx.Node) -> frozenset[int]:
            while node.name not in tensors and node.all_input_nodes:  # a chunk: as what it parts
                node = node.all_input_nodes[0]
            if node.name not in sites:
                found: Labelled = tensors[node.name]
                sites[node.name] = frozenset(analysis.units_at(found.ids)[:, 0].tolist())
            return sites[node.name]

        region: dict[str, frozenset[int]] = {}
        todo = []
        for node in graph.nodes:
            if node.target is operator.getitem and node.name in tensors:
                source = node.all_input_nodes[0]
                if sites_of(node) != sites_of(source):
                    todo.append(source)
        while todo:
            node = todo.pop()
            if node.name in region:
                continue
            region[node.name] = sites_of(node)
            if node.name not in self._mixing:
                todo += [n for n in node.all_input_nodes if n.name in tensors or n.all_input_nodes]
        # What the parted tensors are put together to, as far as the same sites lie in it.
        self._all_sites = {n.name: sites_of(n) for n in graph.nodes if n.name in tensors}
        return region

    def evaluate(self, probabilities: list[Tensor]) -> Live:
        """Per node: the probability that some path to the output is left.

        Args:
            probabilities: per site (units,), in 0..1.
        """
        live: dict[str, Openness] = {}
        by_site: dict[str, dict[int, Openness]] = defaultdict(dict)
        for name, sources, is_output in reversed(self.nodes):
            own: Openness = 1.0 if is_output else live.get(name, 0.0)
            if name in self._sites:  # it is needed where one of its sites is
                own = live[name] = any_of(list(by_site[name].values()))
            if isinstance(own, float) and own == 0.0:
                continue
            if name in self._may_vanish:
                left = torch.stack([probabilities[s].sum() for s in self._may_vanish[name]]).sum()
                own = live[name] = times(own, (left > 0).to(left.dtype))
            for source in sources:
                edge: Openness = 1.0
                if name in self._shortcut and source != self._shortcut[name]:
                    edge = probabilities[self._block_sites[name]][0]
                whole = times(own, edge)
                if source in self._sites:
                    self._pass_sites(by_site, name, source, own, edge)
                live[source] = any_of([live[source], whole]) if source in live else whole
        return Live(live, dict(by_site))

    def _pass_sites(
        self,
        by_site: dict[str, dict[int, Openness]],
        name: str,
        source: str,
        own: Openness,
        edge: Openness,
    ) -> None:
        """What a reader needs of each site of a parted tensor."""
        keeps = self._all_sites.get(name)
        reads_all = name in self._mixing or keeps is None
        for site in self._sites[source]:
            needed = own
            if name in self._sites:
                needed = by_site[name].get(site, 0.0) if name not in self._mixing else own
            elif not reads_all and keeps is not None and site not in keeps:
                continue
            if isinstance(needed, float) and needed == 0.0:
                continue
            needed = times(needed, edge)
            earlier = by_site[source].get(site)
            by_site[source][site] = needed if earlier is None else any_of([earlier, needed])


def _before_concatenations(analysis: Analysis, graph: fx.Graph) -> dict[str, list[int]]:
    """Operators that may lose all outputs and leave a valid network, with the sites they write.

    Their channels lie in a concatenation, whose other operands stay.
    """
    costs = {cost.mix.node: cost for cost in analysis.costs}
    joined: set[fx.Node] = set()
    found: dict[str, list[int]] = {}
    for node in reversed(graph.nodes):
        if any(user.target in (torch.cat, torch.concat) or user in joined for user in node.users):
            cost = costs.get(node.name)
            if cost is None or cost.mix.depthwise:
                joined.add(node)
            elif not cost.fixed_out and cost.writes:
                found[node.name] = list(cost.writes)
    return found


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


def given(event: Openness, condition: Openness) -> Openness:
    """P(event | condition) for an event that the condition makes likelier: at most 1."""
    if isinstance(event, float) and event == 1.0:
        return 1.0
    if isinstance(condition, float) and isinstance(event, float):
        return min(1.0, event / condition) if condition > 0 else event
    low = condition.clamp_min(1e-12) if isinstance(condition, Tensor) else max(condition, 1e-12)
    ratio = event / low
    return ratio.clamp(max=1.0) if isinstance(ratio, Tensor) else min(1.0, ratio)
