"""What a network costs in multiply-accumulates: counted on a real one, expected on a gated one.

MACs are those of convolutions, transposed convolutions and linear layers, for one image.
"""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from polarprune.graph.liveness import Live, Liveness, given
from polarprune.graph.shapes import COUNTED
from polarprune.graph.site_parts import Openness, any_of, plain_number, times
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
    counts = counter.get_flop_counts().get("Global", {})
    return int(sum(flops for operator, flops in counts.items() if operator in COUNTED)) // 2


def count_parameters(net: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in net.parameters())


@dataclass(frozen=True)
class ExpectedCost:
    """The cost of one evaluation of the circuit; MACs are 0-dim tensors or floats.

    Attributes:
        live: per mixing operator the probability that it is computed.
        open_inputs, open_outputs: per mixing operator its channels, given that it is; those of a
            grouped one are written where both are open.
    """

    macs: Openness
    live: list[Openness]
    open_inputs: list[Openness]
    open_outputs: list[Openness]


class CostCircuit:
    """Expected MACs of a gated network as a differentiable function of its open probabilities.

    macs = sum over operators of live * (MACs a channel pair) * E[open inputs * open outputs],
    where an operator is live when some path from it to the output is left, and a channel counts
    only where something live writes it and something live reads it. Units and blocks are taken as
    independent; where an input and an output are the same unit, E[open_i open_o] is p, not p^2.

    Exactness: equals count_macs of the collapsed network when every probability is 0 or 1.
    Source: ours (design: the budget).
    """

    def __init__(
        self, analysis: Analysis, graph: fx.Graph, weights: dict[str, int] | None = None
    ) -> None:
        """The circuit of one analysed graph.

        What lies in operators that the analysis does not know is kept, whatever is decided.

        Args:
            weights: values in the weight of each mixing layer, to count these instead of MACs;
                those of normalisations and biases are in neither.
        """
        self._costs = analysis.costs
        if weights is not None:
            self._costs = [_in_weights(cost, weights[cost.mix.layer]) for cost in self._costs]
        self._held = analysis.held
        places = range(len(analysis.sites) + len(analysis.held))
        self._reads = [{**c.reads, **c.held_in} for c in self._costs]
        self._writes = [{**c.writes, **c.held_out} for c in self._costs]
        self._groups = [{**c.group_macs, **c.held_macs} for c in self._costs]
        # Per site or group: the nodes that keep its channels by reading and by writing them.
        self._readers: list[list[str]] = [[] for _ in places]
        self._writers: list[list[str]] = [[] for _ in places]
        for cost, reads, writes in zip(self._costs, self._reads, self._writes, strict=True):
            for place in reads if not cost.mix.only_ties else ():
                self._readers[place].append(cost.mix.node)
            for place in writes if not cost.mix.depthwise else ():
                self._writers[place].append(cost.mix.node)
        for place, group in enumerate(analysis.held, len(analysis.sites)):
            self._readers[place] += group.pinned_by
            self._writers[place] += group.pinned_by
        self._add_makers(analysis)
        self._always_written = self._passed_on(analysis)
        self.liveness = Liveness(analysis, graph)
        known = sum(cost.total for cost in self._costs)
        self._uncounted = analysis.uncounted if weights is None else {}
        self.dense_macs = known + sum(self._uncounted.values())

    def _add_makers(self, analysis: Analysis) -> None:
        """Of sites with literal zeros in them, the writers that make something of these.

        Normalisations and grouped convolutions: where nothing else writes a channel any more,
        they leave a constant in it.
        """
        zeros = np.concatenate([*analysis.labels.zeros, np.zeros(0, dtype=np.int64)])
        padded = set(analysis.places_at(zeros).tolist()) - {-1}
        if not padded:
            return
        grouped = [(c.mix.node, c.mix.inputs) for c in self._costs if c.mix.only_ties]
        for node, ids in [*analysis.labels.makers, *grouped]:
            for site in padded & set(analysis.places_at(ids).tolist()):
                self._writers[site].append(node)

    @staticmethod
    def _passed_on(analysis: Analysis) -> list[bool]:
        """Sites that some operator writes which is no mixing one (a parameter, a norm of zeros)."""
        own = np.asarray(analysis.labels.written, dtype=bool)
        for cost in analysis.costs:
            own[cost.mix.outputs] = False
        found = set(analysis.places_at(np.flatnonzero(own)).tolist())
        return [place in found for place in range(len(analysis.sites) + len(analysis.held))]

    def evaluate(self, probabilities: list[Tensor]) -> ExpectedCost:
        """Expected MACs for one image.

        Args:
            probabilities: per site (units,), in 0..1.
        """
        sums: list[Openness] = [p.sum() for p in probabilities]
        sums += [1.0] * len(self._held)  # counted by positions, not by units
        state = self.liveness.evaluate(probabilities)
        live = [state.of(cost.mix.node) for cost in self._costs]
        read = [any_of([state.of(node) for node in readers]) for readers in self._readers]
        written = [
            1.0
            if self._always_written[place]
            else any_of([self._written_by(state, node, place) for node in writers])
            for place, writers in enumerate(self._writers)
        ]
        total: Openness = 0.0
        for name, uncounted in self._uncounted.items():
            total = total + times(state.of(name), float(uncounted))
        open_inputs: list[Openness] = []
        open_outputs: list[Openness] = []
        for number, (cost, alive) in enumerate(zip(self._costs, live, strict=True)):
            wanted = {}
            for place in self._writes[number]:
                needed = state.at(cost.mix.node, place)
                wanted[place] = read[place] if needed is None else needed
            macs, opened, outputs = self._one(number, alive, probabilities, sums, wanted, written)
            open_inputs.append(opened)
            open_outputs.append(outputs)
            total = total + times(alive, macs)
        return ExpectedCost(total, live, open_inputs, open_outputs)

    @staticmethod
    def _written_by(state: Live, node: str, place: int) -> Openness:
        """The probability that a node writes channels of a site or group that something needs."""
        needed = state.at(node, place)
        return state.of(node) if needed is None else times(needed, state.of(node))

    def live_nodes(self, probabilities: list[Tensor]) -> set[str]:
        """The nodes that are still computed when these 0/1 decisions are carried out."""
        state = self.liveness.evaluate(probabilities)
        return {name for name, live in state.nodes.items() if plain_number(live) > 0}

    def _one(
        self,
        number: int,
        alive: Openness,
        probabilities: list[Tensor],
        sums: list[Openness],
        wanted: dict[int, Openness],
        written: list[Openness],
    ) -> tuple[Openness, Openness, Openness]:
        """(MACs given that the operator is live, open input and output positions)."""
        cost, reads, writes = self._costs[number], self._reads[number], self._writes[number]
        opened: Openness = 0.0
        macs: Openness = 0.0
        same: Openness = 0.0
        outputs: Openness = 0.0
        for place, count in reads.items():
            share = times(given(written[place], alive), sums[place])
            opened = opened + share * count
            if cost.mix.groups > 1:
                each = self._groups[number].get(place, 0)
                macs = macs + times(given(wanted[place], alive), share) * each
            elif place in cost.writes:
                p = probabilities[place]
                same = same + (p - p * p).sum() * (count * cost.writes[place])
        if cost.mix.groups > 1:
            return macs, opened, macs * len(cost.mix.outputs) / cost.total
        for place, count in writes.items():
            outputs = outputs + times(given(wanted[place], alive), sums[place]) * count
        return (opened * outputs + same) * cost.per_pair, opened, outputs


def _in_weights(cost: MixCost, weights: int) -> MixCost:
    """The same operator, each of its MACs at the price that makes the total its weights."""

    def priced(macs: dict[int, int]) -> dict[int, int]:
        return {place: value * weights // cost.total for place, value in macs.items()}

    pairs = len(cost.mix.inputs) * len(cost.mix.outputs)
    return replace(
        cost,
        per_pair=weights * cost.mix.groups // pairs,
        total=weights,
        group_macs=priced(cost.group_macs),
        held_macs=priced(cost.held_macs),
    )


def as_float(value: Openness) -> float:
    """A plain number."""
    result = plain_number(value)
    assert math.isfinite(result)
    return result
