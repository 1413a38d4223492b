"""What a network costs in multiply-accumulates: counted on a real one, expected on a gated one.

MACs are those of convolutions, transposed convolutions and linear layers, for one image.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from polarprune.graph.shapes import COUNTED
from polarprune.graph.sites import Analysis, MixCost

Openness = Tensor | float


def count_macs(net: nn.Module, example_input: Tensor) -> int:
    """Multiply-accumulates of one image, counted by torch's own counter on a meta-device forward.

    Args:
        net: left unmodified.
        example_input: (n, ...); only its shape matters.
    """
    twin = copy.deepcopy(net).to("meta").eval()
    one = torch.empty((1, *example_input.shape[1:]), dtype=example_input.dtype, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(one)
    counts = counter.get_flop_counts()["Global"]
    return int(sum(flops for operator, flops in counts.items() if operator in COUNTED)) // 2


def count_parameters(net: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in net.parameters())


@dataclass(frozen=True)
class ExpectedCost:
    """The cost of one evaluation of the circuit; MACs are 0-dim tensors or floats."""

    macs: Openness
    live: list[Openness]
    open_inputs: list[Openness]


class CostCircuit:
    """Expected MACs of a gated network as a differentiable function of its open probabilities.

    macs = sum over operators of live * (MACs a channel pair) * E[open inputs * open outputs],
    where an operator is live when some path from it to the output is left, and a channel counts
    only where something live writes it and something live reads it. Units and blocks are taken as
    independent; where an input and an output are the same unit, E[open_i open_o] is p, not p^2.

    Exactness: equals count_macs of the collapsed network when every probability is 0 or 1.
    Source: ours (design: the budget).
    """

    def __init__(self, analysis: Analysis, graph: fx.Graph) -> None:
        """The circuit of one analysed graph.

        What lies in operators that the analysis does not know is kept, whatever is decided.
        """
        self._costs = analysis.costs
        self._readers = [
            [i for i, c in enumerate(self._costs) if s in c.reads and not c.mix.depthwise]
            for s in range(len(analysis.sites))
        ]
        self._writers = [
            [i for i, c in enumerate(self._costs) if s in c.writes and not c.mix.depthwise]
            for s in range(len(analysis.sites))
        ]
        self._always_written = self._passed_on(analysis)
        self._block_sites = {a.addition: s for s, a in analysis.additions.items()}
        self._shortcut = {a.addition: a.shortcut for a in analysis.additions.values()}
        self._nodes = [
            (node.name, [n.name for n in node.all_input_nodes], node.op == "output")
            for node in graph.nodes
        ]
        self._may_vanish = self._before_concatenations(graph)
        known = sum(cost.total for cost in self._costs)
        self._uncounted = analysis.uncounted
        self.dense_macs = known + sum(self._uncounted.values())

    def _before_concatenations(self, graph: fx.Graph) -> dict[str, list[int]]:
        """Operators that may lose all outputs and leave a valid network, with the sites they write.

        Their channels lie in a concatenation, whose other operands stay.
        """
        costs = {cost.mix.node: cost for cost in self._costs}
        joined: set[fx.Node] = set()
        found: dict[str, list[int]] = {}
        for node in reversed(graph.nodes):
            if any(
                user.target in (torch.cat, torch.concat) or user in joined for user in node.users
            ):
                cost = costs.get(node.name)
                if cost is None or cost.mix.depthwise:
                    joined.add(node)
                elif not cost.fixed_out and cost.writes:
                    found[node.name] = list(cost.writes)
        return found

    @staticmethod
    def _passed_on(analysis: Analysis) -> list[bool]:
        """Sites that some operator writes which is no mixing one (a parameter, a norm of zeros)."""
        layers = {cost.mix.layer for cost in analysis.costs}
        labels = analysis.labels
        sites = [False] * len(analysis.sites)
        for label, (owner, role, _) in enumerate(labels.keys):
            if labels.written[label] and not (role == "out" and owner in layers):
                found = analysis.unit_of.get(int(labels.roots[label]))
                if found is not None:
                    sites[found[0]] = True
        return sites

    def evaluate(self, probabilities: list[Tensor]) -> ExpectedCost:
        """Expected MACs for one image.

        Args:
            probabilities: per site (units,), in 0..1.
        """
        sums: list[Tensor] = [p.sum() for p in probabilities]
        live_nodes = self._liveness(probabilities)
        live = [live_nodes.get(cost.mix.node, 0.0) for cost in self._costs]
        read = [_any([live[i] for i in readers]) for readers in self._readers]
        written = [
            1.0 if self._always_written[s] else _any([live[i] for i in writers])
            for s, writers in enumerate(self._writers)
        ]
        total: Openness = 0.0
        for name, uncounted in self._uncounted.items():
            total = total + _times(live_nodes.get(name, 0.0), float(uncounted))
        open_inputs: list[Openness] = []
        for cost, alive in zip(self._costs, live, strict=True):
            macs, opened = self._one(cost, alive, probabilities, sums, read, written)
            open_inputs.append(opened)
            total = total + _times(alive, macs)
        return ExpectedCost(total, live, open_inputs)

    def live_nodes(self, probabilities: list[Tensor]) -> set[str]:
        """The nodes that are still computed when these 0/1 decisions are carried out."""
        return {name for name, live in self._liveness(probabilities).items() if float(live) > 0}

    def _liveness(self, probabilities: list[Tensor]) -> dict[str, Openness]:
        """Per node: the probability that some path to the output is left."""
        live: dict[str, Openness] = {}
        for name, sources, is_output in reversed(self._nodes):
            own: Openness = 1.0 if is_output else live.get(name, 0.0)
            if isinstance(own, float) and own == 0.0:
                continue
            if name in self._may_vanish:
                left = torch.stack([probabilities[s].sum() for s in self._may_vanish[name]]).sum()
                own = live[name] = _times(own, (left > 0).to(left.dtype))
            for source in sources:
                edge = own
                if name in self._shortcut and source != self._shortcut[name]:
                    edge = _times(own, probabilities[self._block_sites[name]][0])
                live[source] = _any([live[source], edge]) if source in live else edge
        return live

    def _one(
        self,
        cost: MixCost,
        alive: Openness,
        probabilities: list[Tensor],
        sums: list[Tensor],
        read: list[Openness],
        written: list[Openness],
    ) -> tuple[Openness, Openness]:
        """(MACs given that the operator is live, open input positions)."""
        if cost.mix.groups > 1:
            macs: Openness = float(cost.fixed_group_macs)
            opened: Openness = float(cost.fixed_in)
            for site, each in cost.group_macs.items():
                share = _times(_given(written[site], alive), sums[site])
                opened = opened + share * cost.reads[site]
                macs = macs + _times(_given(read[site], alive), share) * each
            return macs, opened
        opened = float(cost.fixed_in)
        outputs: Openness = float(cost.fixed_out)
        same: Openness = 0.0
        for site, count in cost.reads.items():
            opened = opened + _times(_given(written[site], alive), sums[site]) * count
            if site in cost.writes:
                p = probabilities[site]
                same = same + (p - p * p).sum() * (count * cost.writes[site])
        for site, count in cost.writes.items():
            outputs = outputs + _times(_given(read[site], alive), sums[site]) * count
        return (opened * outputs + same) * cost.per_pair, opened


def _any(parts: list[Openness]) -> Openness:
    """P(at least one), independent parts; a certain one settles it."""
    if any(isinstance(part, float) and part == 1.0 for part in parts):
        return 1.0
    missed: Openness = 1.0
    for part in parts:
        missed = missed * (1.0 - part)
    return 1.0 - missed


def _times(left: Openness, right: Openness) -> Openness:
    if isinstance(left, float) and left == 1.0:
        return right
    return left * right


def _given(event: Openness, condition: Openness) -> Openness:
    """P(event | condition) for an event that the condition makes likelier: at most 1."""
    if isinstance(event, float) and event == 1.0:
        return 1.0
    if isinstance(condition, float) and isinstance(event, float):
        return min(1.0, event / condition) if condition > 0 else event
    low = condition.clamp_min(1e-12) if isinstance(condition, Tensor) else max(condition, 1e-12)
    ratio = event / low
    return ratio.clamp(max=1.0) if isinstance(ratio, Tensor) else min(1.0, ratio)


def as_float(value: Openness) -> float:
    """A plain number."""
    result = float(value)
    assert math.isfinite(result)
    return result
