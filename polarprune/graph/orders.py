"""Fourth stage: which channels of each tensor are left, and in which order they come.

The order of channels is ours to choose: a channel shuffle whose channels are cut one by one is not
computed but absorbed, and the next layer's weights are put into the order that results. Where an
order is asked for that a tensor does not have, and where channels that a slice wants lie apart,
contiguous slices are concatenated; there are no index operators.
"""

import operator
from typing import Any

import numpy as np
import torch
from torch import fx

from polarprune.graph.dead_code import drop_dead
from polarprune.graph.labels import Labelled, Labels

Order = np.ndarray  # the old positions that are left along the axis of the channels, as they come


class Orders:
    """Labels, liveness and orders of the tensors of one graph while it is cut."""

    def __init__(self, graph: fx.Graph, labels: Labels, dead: np.ndarray) -> None:
        """Begin with every tensor's channels in their old order."""
        self.graph = graph
        self.labels = labels
        self.dead = dead
        self.tensors = {n: labels.tensors[n.name] for n in graph.nodes if n.name in labels.tensors}
        self.absorbed: list[fx.Node] = []
        self._orders: dict[fx.Node, Order] = {}
        self._reordered: dict[tuple[fx.Node, bytes], fx.Node] = {}

    def natural(self, tensor: Labelled) -> Order:
        """What is left of a tensor's channels, in their old order."""
        return np.flatnonzero(~self.dead[tensor.ids])

    def of(self, node: fx.Node) -> Order:
        """The order of a tensor along its own axis."""
        found = self._orders.get(node)
        return self.natural(self.tensors[node]) if found is None else found

    def along(self, node: fx.Node, axis: int) -> Order:
        """The order along an axis; the tensor's labels may not vary along it at all."""
        tensor = self.tensors[node]
        return self.of(node) if tensor.axis == axis else np.arange(tensor.shape[axis])

    def put(self, node: fx.Node, order: Order) -> None:
        """Say in which order a node's channels come."""
        if node in self.tensors and self.tensors[node].axis is not None:
            self._orders[node] = order

    def is_natural(self, node: fx.Node) -> bool:
        """Whether the channels come in their old order."""
        return node not in self._orders or rises(self._orders[node])

    def is_whole(self, node: fx.Node) -> bool:
        """Whether no channel is gone and the order is the old one."""
        return self.is_natural(node) and len(self.of(node)) == len(self.tensors[node].ids)

    def pass_on(self, node: fx.Node) -> None:
        """The result comes in the order of its source."""
        source = node.all_input_nodes[0]
        if source in self._orders:
            self.put(node, self._orders[source])

    def want_natural(self, node: fx.Node) -> None:
        """Let a node read all its sources in their old order."""
        for source in node.all_input_nodes:
            if source in self._orders and not self.is_natural(source):
                self.reorder(node, source, self.natural(self.tensors[source]))

    def agree(self, node: fx.Node, operands: list[fx.Node], axes: list[int]) -> None:
        """Operands that meet position by position take the order of the first one.

        Args:
            axes: per operand the axis along which it meets the others.
        """
        result = self.tensors.get(node)
        if result is None or result.axis is None:
            self.want_natural(node)
            return
        order: Order | None = None
        for operand, axis in zip(operands, axes, strict=True):
            tensor = self.tensors.get(operand)
            if tensor is None or tensor.axis != axis:
                continue
            if order is None:
                order = self.of(operand)
            else:
                self.reorder(node, operand, order)
        if order is not None:
            self.put(node, order)

    def reorder(self, node: fx.Node, source: fx.Node, wanted: Order) -> None:
        """Let a node read its source in another order."""
        have = self.of(source)
        if np.array_equal(have, wanted):
            return
        key = (source, wanted.tobytes())
        if key not in self._reordered:
            place = np.empty(int(have.max()) + 1, dtype=np.int64)
            place[have] = np.arange(len(have))
            self._reordered[key] = self.pick(source, place[wanted])
        stand_in = self._reordered[key]
        self.tensors[stand_in], self._orders[stand_in] = self.tensors[source], wanted
        node.replace_input_with(source, stand_in)

    def pick(self, source: fx.Node, at: Order) -> fx.Node:
        """The channels at these places of a tensor: contiguous slices, concatenated."""
        tensor = self.tensors[source]
        assert tensor.axis is not None
        pieces: list[fx.Node] = []
        for start, stop in runs(at):
            index = (*[slice(None)] * tensor.axis, slice(start, stop))
            with self.graph.inserting_after(pieces[-1] if pieces else source):
                piece = self.graph.call_function(operator.getitem, (source, index))
            pieces.append(piece)
        if len(pieces) == 1:
            return pieces[0]
        joined: Any = (pieces, tensor.axis)
        with self.graph.inserting_after(pieces[-1]):
            return self.graph.call_function(torch.cat, joined)

    def absorb(self, node: fx.Node) -> None:
        """Leave a node out when all is done: its first argument stands for it."""
        self.absorbed.append(node)

    def finish(self) -> None:
        """Leave absorbed nodes out."""
        for node in self.absorbed:
            node.replace_all_uses_with(node.all_input_nodes[0])
        drop_dead(self.graph)


def rises(order: Order) -> bool:
    """Whether positions come one after the other."""
    return bool((order[1:] > order[:-1]).all())


def runs(at: Order) -> list[tuple[int, int]]:
    """Contiguous stretches (start, stop) of a list of places."""
    starts = np.flatnonzero(np.diff(at, prepend=at[0] - 2) != 1)
    ends = np.append(starts[1:], len(at)) - 1
    return [(int(at[s]), int(at[e]) + 1) for s, e in zip(starts, ends, strict=True)]
