"""Fourth stage, movement: operators that move data, written for the channels that are left."""

from typing import Any

import numpy as np
import torch
from torch import fx, nn

from polarprune.errors import Refused
from polarprune.graph.labels import Labelled
from polarprune.graph.movement import (
    PARTS,
    VIEWS,
    index_place,
    pad_amounts,
    shuffled,
    split_axis,
    view_sizes,
)
from polarprune.graph.operators import argument, operator_name
from polarprune.graph.orders import Order, Orders

_PERMUTES = ("permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze", "contiguous")


class MovementCut:
    """Rewrites movement operators in place, node by node."""

    def __init__(self, orders: Orders) -> None:
        """Remember where each operand of a concatenation begins, before any of them leaves."""
        self.orders = orders
        self.starts = {
            node: _operand_starts(node, orders)
            for node in orders.graph.nodes
            if operator_name(node) in ("cat", "concat") and node in orders.tensors
        }

    def move(self, node: fx.Node, module: nn.Module | None) -> None:
        """Rewrite one node and say in which order its channels come."""
        orders = self.orders
        name = type(module).__name__ if module is not None else operator_name(node)
        source = node.all_input_nodes[0]
        tensor = orders.tensors.get(source)
        if name in ("cat", "concat", "stack"):
            self._join(node, name)
        elif name == "pad":
            self._pad(node)
        elif name == "getitem" and tensor is None:
            self._part(node, source)
        elif name == "getitem":
            self._index(node, source)
        elif tensor is None or tensor.axis is None:
            self._set_sizes(node, name)
        elif name in PARTS:
            if split_axis(node, len(tensor.shape)) == tensor.axis:
                return  # each part is sliced by itself
            orders.want_natural(node)
        elif name in ("channel_shuffle", "ChannelShuffle"):
            self._shuffle(node, module, source)
        else:
            self._replay(node, name, source)

    def _join(self, node: fx.Node, name: str) -> None:
        orders = self.orders
        tensor = orders.tensors.get(node)
        if tensor is None or tensor.axis is None:
            orders.want_natural(node)
            return
        dim = int(argument(node, 1, "dim", 0)) % len(tensor.shape)
        if name == "stack" or dim != tensor.axis:
            operands = node.all_input_nodes
            shift = int(name == "stack" and dim < tensor.axis)
            orders.agree(node, operands, [tensor.axis - shift] * len(operands))
            return
        joined = [orders.along(operand, dim) + start for operand, start in self._left(node)]
        orders.put(node, np.concatenate(joined))

    def _left(self, node: fx.Node) -> list[tuple[fx.Node, int]]:
        """The operands that are still there, in order, each with its old start."""
        left = list(_listed(node))
        found = []
        for operand, start in self.starts[node]:
            if left and operand is left[0]:
                found.append((left.pop(0), start))
        assert not left
        return found

    def _pad(self, node: fx.Node) -> None:
        """Fewer padded channels: the zeros that are left before and after the source's."""
        orders = self.orders
        source = node.all_input_nodes[0]
        tensor, result = orders.tensors[source], orders.tensors.get(node)
        amounts = list(pad_amounts(node))
        axis = 1 if tensor.axis is None else tensor.axis
        place = 2 * (len(tensor.shape) - 1 - axis)
        over_space = len(amounts) <= place or amounts[place : place + 2] == [0, 0]
        if result is None or over_space:
            orders.pass_on(node)
            return
        before, after = amounts[place : place + 2]
        if not (isinstance(before, int) and isinstance(after, int)):
            orders.want_natural(node)
            return
        ids = result.vector(axis)
        assert ids is not None
        alive = np.flatnonzero(~orders.dead[ids])
        zeros_before, zeros_after = alive[alive < before], alive[alive >= len(ids) - after]
        amounts[place : place + 2] = [len(zeros_before), len(zeros_after)]
        node.args = (node.args[0], tuple(amounts), *node.args[2:])
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "pad"}
        own = orders.along(source, axis) + before
        orders.put(node, np.concatenate([zeros_before, own, zeros_after]))

    def _index(self, node: fx.Node, source: fx.Node) -> None:
        """A slice of the channels, or one of them."""
        orders = self.orders
        tensor = orders.tensors[source]
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        place = None if tensor.axis is None else index_place(index, tensor)
        if place is None or tensor.axis is None:
            orders.pass_on(node)
            return
        if orders.is_whole(source):
            return
        order, part = orders.of(source), index[place]
        count = tensor.shape[tensor.axis]
        if isinstance(part, int):
            at: Any = int(np.flatnonzero(order == part % count)[0])
            node.args = (source, (*index[:place], at, *index[place + 1 :]))
            return
        assert isinstance(part, slice)
        _, start, stop = orders.labels.parts[node.name]
        places = np.flatnonzero((order >= start) & (order < stop))
        orders.put(node, order[places] - start)
        self._take(node, source, places, index, place)

    def _take(
        self, node: fx.Node, source: fx.Node, places: Order, index: tuple[Any, ...], place: int
    ) -> None:
        """Let an index node take these places: itself where they are contiguous."""
        contiguous = int(places[-1]) - int(places[0]) + 1 == len(places)
        part = slice(int(places[0]), int(places[-1]) + 1)
        if not contiguous or not _rising(places):
            source, part = self.orders.pick(source, places), slice(None)
        elif len(places) == len(self.orders.of(source)):
            part = slice(None)
        index = (*index[:place], part, *index[place + 1 :])
        node.args = (source, index)
        if all(p == slice(None) or p is Ellipsis for p in index):
            self.orders.absorb(node)

    def _part(self, node: fx.Node, source: fx.Node) -> None:
        """One result of a chunk or split: a slice of its source where channels were parted."""
        found = self.orders.labels.parts.get(node.name)
        if found is None:
            return
        whole, (_, start, stop) = source.all_input_nodes[0], found
        axis = self.orders.tensors[whole].axis
        assert axis is not None
        if self.orders.is_whole(whole):
            return
        node.args = (whole, (*[slice(None)] * axis, slice(start, stop)))
        self._index(node, whole)

    def _shuffle(self, node: fx.Node, module: nn.Module | None, source: fx.Node) -> None:
        """Whole, it stays; cut, it is absorbed: its result is its source, counted otherwise."""
        orders = self.orders
        tensor = orders.tensors[source]
        if orders.is_whole(source):
            return
        if tensor.axis != 1:
            orders.want_natural(node)
            return
        groups = int(getattr(module, "groups", 0) or argument(node, 1, "groups"))
        new_place = np.argsort(shuffled(len(tensor.ids), groups))
        orders.put(node, new_place[orders.of(source)])
        orders.absorb(node)

    def _replay(self, node: fx.Node, name: str, source: fx.Node) -> None:
        """A view, permutation or the like: on fewer channels, with its sizes put right."""
        orders = self.orders
        tensor, result = orders.tensors[source], orders.tensors.get(node)
        if result is None or result.axis is None:
            orders.want_natural(node)
            return
        if not orders.is_natural(source):
            each = _expansion(name, tensor, result)
            if each is None:
                orders.want_natural(node)
            else:
                order = orders.of(source)
                orders.put(node, (order[:, None] * each + np.arange(each)).reshape(-1))
        self._set_sizes(node, name)
        if name in VIEWS and not _keeps_outer(tensor, result):
            self._check_view(node, tensor, result)

    def _set_sizes(self, node: fx.Node, name: str) -> None:
        """A size that is written out along the axis of the channels becomes the count left."""
        result = self.orders.tensors.get(node)
        if name not in (*VIEWS, "expand") or result is None or result.axis is None:
            return
        left = len(self.orders.of(node))
        if left == len(result.ids):
            return
        if name == "unflatten":
            place = result.axis - int(argument(node, 1, "dim")) % len(result.shape)
            sizes = list(argument(node, 2, "sizes"))
        else:
            place, sizes = result.axis, list(view_sizes(node))
        if 0 <= place < len(sizes) and sizes[place] != -1:
            sizes[place] = left
        first = (node.args[0], *node.args[1:2]) if name == "unflatten" else (node.args[0],)
        node.args, node.kwargs = (*first, tuple(sizes)), {}

    def _check_view(self, node: fx.Node, tensor: Labelled, result: Labelled) -> None:
        """A view that regroups axes: what it gives is the old result's part that is left."""
        axis, left = tensor.axis, result.axis
        assert axis is not None
        assert left is not None
        positions = torch.arange(int(np.prod(tensor.shape))).reshape(tensor.shape)
        kept_in = torch.from_numpy(self.orders.natural(tensor))
        kept_out = torch.from_numpy(self.orders.natural(result))
        expected = positions.reshape(result.shape).index_select(left, kept_out)
        shape = list(result.shape)
        shape[left] = len(kept_out)
        got = positions.index_select(axis, kept_in)
        if got.numel() != expected.numel() or not torch.equal(got.reshape(shape), expected):
            raise Refused(
                f"{node.name} lays channels out in a way that a cut cannot repeat; report this"
            )


def _expansion(name: str, tensor: Labelled, result: Labelled) -> int | None:
    """How many positions of a result each one of its source becomes, side by side."""
    if name in _PERMUTES:
        return 1
    assert tensor.axis is not None
    assert result.axis is not None
    each, rest = divmod(len(result.ids), len(tensor.ids))
    simple = name in (*VIEWS, "flatten", "Flatten") and _keeps_outer(tensor, result)
    return each if simple and rest == 0 else None


def _keeps_outer(tensor: Labelled, result: Labelled) -> bool:
    """Whether a view leaves the axes before the channels' as one block of the same size."""
    outer = np.prod(tensor.shape[: tensor.axis], dtype=np.int64)
    return bool(outer == np.prod(result.shape[: result.axis], dtype=np.int64))


def _rising(places: Order) -> bool:
    return bool((places[1:] > places[:-1]).all())


def _operand_starts(node: fx.Node, orders: Orders) -> list[tuple[fx.Node, int]]:
    """Each operand of a concatenation with the position at which it begins."""
    dim = int(argument(node, 1, "dim", 0)) % len(orders.tensors[node].shape)
    found, start = [], 0
    for operand in _listed(node):
        found.append((operand, start))
        start += orders.tensors[operand].shape[dim]
    return found


def _listed(node: fx.Node) -> list[fx.Node]:
    """The operands of a concatenation; one that is named twice comes twice."""
    operands = node.args[0]
    if not isinstance(operands, tuple | list):
        return []
    return [o for o in operands if isinstance(o, fx.Node)]
