"""What is still computed when blocks are left out: a probability for each node.

A node is live when some path from it to the output is left. Of a tensor whose channels part, some
may be needed and others not (site_parts.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from polarprune.graph.class_groups import ALWAYS
from polarprune.graph.site_parts import (
    Openness,
    SiteParts,
    any_of,
    parts_of_sites,
    plain_number,
    times,
)
from polarprune.graph.sites import Analysis

# Channels that are not needed may take an operator along, and that others: to a fixpoint, which
# networks were seen to reach in two rounds.
_ROUNDS = 4


@dataclass(frozen=True)
class Live:
    """Of one evaluation: per node, and per site and part where a site comes apart."""

    nodes: dict[str, Openness]
    needed: dict[int, list[Openness]]
    parts: dict[int, SiteParts]

    def of(self, name: str) -> Openness:
        """The probability that the node is computed."""
        return self.nodes.get(name, 0.0)

    def at(self, name: str, site: int) -> Openness | None:
        """The probability that the node's channels of a site are needed.

        None: the site does not come apart, or none of its channels lie in the node's result (a
        node that only reads channels may pin them).
        """
        if site not in self.needed or name not in self.parts[site].part_of:
            return None
        return self.needed[site][self.parts[site].part_of[name]]


class Liveness:
    """Evaluates liveness backwards from the output."""

    def __init__(self, analysis: Analysis, graph: fx.Graph) -> None:
        """Look through one analysed graph."""
        self._block_sites = {a.addition: s for s, a in analysis.additions.items()}
        self._shortcut = {a.addition: a.shortcut for a in analysis.additions.values()}
        self.nodes = [
            (node.name, [n.name for n in node.all_input_nodes], node.op == "output")
            for node in graph.nodes
        ]
        self._may_vanish = _before_concatenations(analysis, graph)
        mixing = {cost.mix.node for cost in analysis.costs if not cost.mix.only_ties}
        parts = parts_of_sites(analysis, graph, self._certain(), mixing)
        self.parts = {site: found for site, found in parts.items() if found.count > 1}
        # Operators that go when none of the channels that they write is needed.
        self._writes = {
            cost.mix.node: [*cost.writes, *cost.held_out]
            for cost in analysis.costs
            if not cost.mix.only_ties
            and any(place in self.parts for place in (*cost.writes, *cost.held_out))
        }

    def _certain(self) -> set[str]:
        """The nodes that are computed whatever is decided."""
        found: set[str] = set()
        for name, sources, is_output in reversed(self.nodes):
            if (is_output or name in found) and name not in self._may_vanish:
                found |= {name}
                shortcut = self._shortcut.get(name)
                found |= {source for source in sources if shortcut in (None, source)}
        return found

    def evaluate(self, probabilities: list[Tensor]) -> Live:
        """Per node: the probability that some path to the output is left.

        Args:
            probabilities: per site (units,), in 0..1.
        """
        open_sites = [(p.sum() > 0).to(p.dtype) for p in probabilities]
        state = Live(self._pass(probabilities, open_sites, None), {}, self.parts)
        if not self.parts:
            return state
        for _ in range(_ROUNDS):
            needed = {
                site: parts.needed(state.nodes, probabilities) for site, parts in self.parts.items()
            }
            before = {name: plain_number(live) for name, live in state.nodes.items()}
            state = Live(state.nodes, needed, self.parts)
            nodes = self._pass(probabilities, open_sites, state)
            state = Live(nodes, needed, self.parts)
            if all(plain_number(nodes.get(name, 0.0)) == live for name, live in before.items()):
                break
        return state

    def _pass(
        self, probabilities: list[Tensor], open_sites: list[Tensor], state: Live | None
    ) -> dict[str, Openness]:
        live: dict[str, Openness] = {ALWAYS: 1.0}
        for name, sources, is_output in reversed(self.nodes):
            if is_output:
                live[name] = 1.0
            own = live.get(name, 0.0)
            if isinstance(own, float) and own == 0.0:
                continue
            vanishes = name in self._may_vanish
            if vanishes or (state is not None and name in self._writes):
                sites = self._may_vanish[name] if vanishes else self._writes[name]
                wanted = [self._wanted(state, name, site) for site in sites]
                if vanishes:  # then all of them are sites, none is a group that no gate closes
                    wanted = [times(w, open_sites[s]) for w, s in zip(wanted, sites, strict=True)]
                own = live[name] = times(own, any_of(wanted))
            for source in sources:
                edge = own
                if name in self._shortcut and source != self._shortcut[name]:
                    edge = times(own, probabilities[self._block_sites[name]][0])
                live[source] = any_of([live[source], edge]) if source in live else edge
        return live

    @staticmethod
    def _wanted(state: Live | None, name: str, site: int) -> Openness:
        found = None if state is None else state.at(name, site)
        return 1.0 if found is None else found


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
            if cost is None or cost.mix.only_ties:
                joined.add(node)
            elif not cost.held_out and cost.writes:
                found[node.name] = list(cost.writes)
    return found


def given(event: Openness, condition: Openness) -> Openness:
    """P(event | condition) for an event that the condition makes likelier: at most 1."""
    if isinstance(event, float) and event == 1.0:
        return 1.0
    if isinstance(condition, float) and isinstance(event, float):
        return min(1.0, event / condition) if condition > 0 else event
    low = condition.clamp_min(1e-12) if isinstance(condition, Tensor) else max(condition, 1e-12)
    ratio = event / low
    return ratio.clamp(max=1.0) if isinstance(ratio, Tensor) else min(1.0, ratio)
