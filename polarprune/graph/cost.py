"""What a network costs in multiply-accumulates: counted on a real one, expected on a gated one.

MACs are those of convolutions, transposed convolutions and linear layers, for one image.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from polarprune.graph.liveness import Live, Liveness, given
from polarprune.graph.shapes import COUNTED
from polarprune.graph.site_parts import Openness, any_of, times
from polarprune.graph.sites import Analysis, MixCost


def count_macs(net: nn.Module, example_input: Tensor) -> int:
    """Multiply-accumulates of one image, counted by torch's own counter on a meta-device forward.

    Args:
        net: left unmodified.
        example_input: (n, ...); only its shape matters.
    """
    one = torch.zeros((1, *example_input.shape[1:]), dtype=example_input.dtype)
    twin = copy.deepcopy(net).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            copy.deepcopy(twin).to("meta")(one.to("meta"))
        except (NotImplementedError, RuntimeError):  # a part of it looks at values
            counter.flop_counts.clear()
            twin.cpu()(one)
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
        self._readers: list[list[int]] = [[] for _ in analysis.sites]
        for i, c in enumerate(self._costs):
            for s in c.reads:
                if not c.mix.only_ties:
                    self._readers[s].append(i)
        self._writers: list[list[str]] = [[] for _ in analysis.sites]
        for c in self._costs:
            for s in c.writes:
                if not c.mix.depthwise:
                    self._writers[s].append(c.mix.node)
        self._add_makers(analysis)
        self._always_written = self._passed_on(analysis)
        self.liveness = Liveness(analysis, graph)
        known = sum(cost.total for cost in self._costs)
        self._uncounted = analysis.uncounted
        self.dense_macs = known + sum(self._uncounted.values())

    def _add_makers(self, analysis: Analysis) -> None:
        """Of sites with literal zeros in them, the writers that make something of these.

        Normalisations and grouped convolutions: where nothing else writes a channel any more,
        they leave a constant in it.
        """
        zeros = np.concatenate([*analysis.labels.zeros, np.zeros(0, dtype=np.int64)])
        padded = set(analysis.units_at(zeros)[:, 0].tolist()) - {-1}
        if not padded:
            return
        grouped = [(c.mix.node, c.mix.inputs) for c in self._costs if c.mix.only_ties]
        for node, ids in [*analysis.labels.makers, *grouped]:
            for site in padded & set(analysis.units_at(ids)[:, 0].tolist()):
                self._writers[site].append(node)

    @staticmethod
    def _passed_on(analysis: Analysis) -> list[bool]:
        """Sites that some operator writes which is no mixing one (a parameter, a norm of zeros)."""
        own = np.asarray(analysis.labels.written, dtype=bool)
        for cost in analysis.costs:
            own[cost.mix.outputs] = False
        found = set(analysis.units_at(np.flatnonzero(own))[:, 0].tolist())
        return [site in found for site in range(len(analysis.sites))]

    def evaluate(self, probabilities: list[Tensor]) -> ExpectedCost:
        """Expected MACs for one image.

        Args:
            probabilities: per site (units,), in 0..1.
        """
        sums: list[Tensor] = [p.sum() for p in probabilities]
        state = self.liveness.evaluate(probabilities)
        live = [state.of(cost.mix.node) for cost in self._costs]
        read = [any_of([live[i] for i in readers]) for readers in self._readers]
        written = [
            1.0
            if self._always_written[s]
            else any_of([self._writes(state, node, s) for node in writers])
            for s, writers in enumerate(self._writers)
        ]
        total: Openness = 0.0
        for name, uncounted in self._uncounted.items():
            total = total + times(state.of(name), float(uncounted))
        open_inputs: list[Openness] = []
        for cost, alive in zip(self._costs, live, strict=True):
            wanted = {}
            for site in cost.writes:
                needed = state.at(cost.mix.node, site)
                wanted[site] = read[site] if needed is None else needed
            macs, opened = self._one(cost, alive, probabilities, sums, wanted, written)
            open_inputs.append(opened)
            total = total + times(alive, macs)
        return ExpectedCost(total, live, open_inputs)

    @staticmethod
    def _writes(state: Live, node: str, site: int) -> Openness:
        """The probability that an operator writes channels of a site that something needs."""
        needed = state.at(node, site)
        return state.of(node) if needed is None else times(needed, state.of(node))

    def live_nodes(self, probabilities: list[Tensor]) -> set[str]:
        """The nodes that are still computed when these 0/1 decisions are carried out."""
        state = self.liveness.evaluate(probabilities)
        return {name for name, live in state.nodes.items() if float(live) > 0}

    def _one(
        self,
        cost: MixCost,
        alive: Openness,
        probabilities: list[Tensor],
        sums: list[Tensor],
        wanted: dict[int, Openness],
        written: list[Openness],
    ) -> tuple[Openness, Openness]:
        """(MACs given that the operator is live, open input positions)."""
        if cost.mix.groups > 1:
            macs: Openness = float(cost.fixed_group_macs)
            opened: Openness = float(cost.fixed_in)
            for site, each in cost.group_macs.items():
                share = times(given(written[site], alive), sums[site])
                opened = opened + share * cost.reads[site]
                macs = macs + times(given(wanted[site], alive), share) * each
            return macs, opened
        opened = float(cost.fixed_in)
        outputs: Openness = float(cost.fixed_out)
        same: Openness = 0.0
        for site, count in cost.reads.items():
            opened = opened + times(given(written[site], alive), sums[site]) * count
            if site in cost.writes:
                p = probabilities[site]
                same = same + (p - p * p).sum() * (count * cost.writes[site])
        for site, count in cost.writes.items():
            outputs = outputs + times(given(wanted[site], alive), sums[site]) * count
        return (opened * outputs + same) * cost.per_pair, opened


def as_float(value: Openness) -> float:
    """A plain number."""
    result = float(value)
    assert math.isfinite(result)
    return result
