"""Label rules for operators that only move data: run them on the labels as they are.

Where the result's labels vary along several axes, ties make them vary along one (labels.py). Each
rule first makes sure that the operator can still be written after a cut (movement_cut.py); what
cannot is pinned, with the reason.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from polarprune.graph.labels import Labelled
from polarprune.graph.operators import argument, operator_name

if TYPE_CHECKING:
    from polarprune.graph.label_pass import LabelPass

VIEWS = ("view", "reshape", "unflatten")
PARTS = ("chunk", "split", "tensor_split", "unbind")
# What is called on more or fewer channels without any change of its arguments.
_FREE = (
    *("flatten", "permute", "transpose", "swapaxes", "movedim", "unsqueeze", "pixel_shuffle"),
    *("pixel_unshuffle", "flip", "PixelShuffle", "PixelUnshuffle", "Flatten"),
)


def move_labels(pass_: "LabelPass", node: fx.Node, module: nn.Module | None) -> Any:
    """The labels of a movement operator's result (or results)."""
    name = type(module).__name__ if module is not None else operator_name(node)
    if name in ("cat", "concat"):
        return _concatenate(pass_, node)
    if name == "stack":
        return _stack(pass_, node)
    if name == "pad":
        return _pad(pass_, node)
    source = pass_.env[node.all_input_nodes[0]]
    if not isinstance(source, Labelled) or len(pass_.inputs(node)) > 1:
        return pass_.unknown(node)
    if name in ("channel_shuffle", "ChannelShuffle"):
        return _shuffle(pass_, node, module, source)
    reason = _inexpressible(pass_, node, name, source)
    if reason is not None:
        return pass_.refuse(node, reason)
    moved = _run(pass_, node, module, source.full())
    if isinstance(moved, tuple | list):
        return _several(pass_, node, moved)
    found = pass_.labels.one_axis(moved)
    return pass_.opaque(node, "channels laid along the batch") if found is None else found


def _run(pass_: "LabelPass", node: fx.Node, module: nn.Module | None, labels: Tensor) -> Any:
    """The operator itself, on labels in place of its tensor."""

    def value(n: fx.Node) -> Any:
        found = pass_.env[n]
        return labels if isinstance(found, Labelled) else found

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    if module is not None:
        return module(labels)
    if node.op == "call_method":
        # Labels are expanded without copying, which view() refuses; reshape() gives the same.
        method = "reshape" if node.target == "view" else str(node.target)
        return getattr(args[0], method)(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _several(pass_: "LabelPass", node: fx.Node, moved: Any) -> Any:
    parts = [pass_.labels.one_axis(part) for part in moved]
    if any(part is None for part in parts):
        return pass_.opaque(node, "channels laid along the batch")
    source: Labelled = pass_.env[node.all_input_nodes[0]]
    if source.axis is not None and split_axis(node, len(source.shape)) == source.axis:
        pass_.labels.parts[node.name] = (node.all_input_nodes[0].name, 0, 0)
    return tuple(parts)


def split_axis(node: fx.Node, rank: int) -> int:
    """The axis along which a chunk, split or unbind takes a tensor apart."""
    place = 1 if operator_name(node) == "unbind" else 2
    return int(argument(node, place, "dim", 0)) % rank


def _inexpressible(pass_: "LabelPass", node: fx.Node, name: str, source: Labelled) -> str | None:
    """Why a movement could not be replayed on fewer channels, or None where it can."""
    if source.axis is None or name in _FREE:
        return None
    rank = len(source.shape)
    if name == "squeeze":
        dim = argument(node, 1, "dim")
        if dim is None:
            return "squeeze without a dimension could drop the channel axis"
        dims = dim if isinstance(dim, tuple | list) else (dim,)
        if source.axis in {int(d) % rank for d in dims}:
            return "squeezes the channel axis, which a cut to one channel would drop"
        return None
    if name == "getitem":
        return _inexpressible_index(pass_, node, source)
    if name in VIEWS:
        written = node.kwargs and name != "unflatten"
        return "a view with keyword arguments" if written else None
    if name == "Unflatten":
        return "nn.Unflatten has its sizes written out"
    if name in PARTS:
        axis = split_axis(node, rank)
        return "takes single channels out" if name == "unbind" and axis == source.axis else None
    if name == "narrow":
        dim = int(argument(node, 1, "dim")) % rank
        return "narrows the channel axis; write it as a slice" if dim == source.axis else None
    if name == "roll":
        dims = argument(node, 2, "dims")
        dims = dims if isinstance(dims, tuple | list) else (dims,)
        rolled = None in dims or source.axis in {int(d) % rank for d in dims}
        return "rolls the channel axis" if rolled else None
    if name in ("expand", "repeat"):
        grown = pass_.shape(node)
        axis = source.axis + len(grown) - rank
        return "repeats the channel axis" if grown[axis] != source.shape[source.axis] else None
    return f"operator {name} moves the channel axis in a way that is not known"


def _inexpressible_index(pass_: "LabelPass", node: fx.Node, source: Labelled) -> str | None:
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if any(not (i is None or i is Ellipsis or isinstance(i, int | slice | fx.Node)) for i in index):
        return "indexing other than by slices and integers"
    place = index_place(index, source)
    if place is None:
        return None
    part = index[place]
    if isinstance(part, int):
        return None
    if isinstance(part, fx.Node) or (isinstance(part, slice) and part.step not in (None, 1)):
        return "picks channels other than by a contiguous slice"
    # Bounds that are computed from sizes, as numbers.
    assert isinstance(part, slice)
    low, high = (pass_.env[b] if isinstance(b, fx.Node) else b for b in (part.start, part.stop))
    start, stop, _ = slice(low, high).indices(len(source.ids))
    pass_.labels.parts[node.name] = (node.all_input_nodes[0].name, start, stop)
    return None


def index_place(index: tuple[Any, ...], source: Labelled) -> int | None:
    """Where in an index the axis of the channels is addressed, None where it is taken whole."""
    assert source.axis is not None
    used = sum(1 for part in index if part is not None and part is not Ellipsis)
    axis = 0
    for place, part in enumerate(index):
        if part is Ellipsis:
            axis += len(source.shape) - used
        elif part is not None:
            if axis == source.axis:
                return None if part == slice(None) else place
            axis += 1
    return None


def view_sizes(node: fx.Node) -> tuple[Any, ...]:
    """The sizes that a view, reshape or expand call asks for."""
    given = node.args[1:]
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else given


def _shuffle(
    pass_: "LabelPass", node: fx.Node, module: nn.Module | None, source: Labelled
) -> Labelled:
    """A channel shuffle ties nothing: the cut puts channels in an order of its own."""
    if source.axis is None:
        return source
    groups = int(getattr(module, "groups", 0) or argument(node, 1, "groups"))
    if source.axis != 1:
        found = pass_.labels.one_axis(torch.channel_shuffle(source.full().contiguous(), groups))
        assert found is not None
        return found
    return Labelled(source.ids[shuffled(len(source.ids), groups)], 1, source.shape)


def shuffled(count: int, groups: int) -> np.ndarray:
    """The old position of each new one under a channel shuffle."""
    return np.arange(count).reshape(groups, -1).T.reshape(-1)


def _concatenate(pass_: "LabelPass", node: fx.Node) -> Any:
    operands = node.args[0]
    if not isinstance(operands, tuple | list) or not all(
        isinstance(o, fx.Node) and isinstance(pass_.env[o], Labelled) for o in operands
    ):
        return pass_.unknown(node)
    parts: list[Labelled] = [pass_.env[o] for o in operands if isinstance(o, fx.Node)]
    if len({pass_.values[o.name].dtype for o in operands if isinstance(o, fx.Node)}) > 1:
        return pass_.refuse(node, "concatenates tensors of different types")
    return _join(pass_, node, parts, int(argument(node, 1, "dim", 0)) % len(parts[0].shape))


def _stack(pass_: "LabelPass", node: fx.Node) -> Any:
    operands = node.args[0]
    if not isinstance(operands, tuple | list) or not all(
        isinstance(o, fx.Node) and isinstance(pass_.env[o], Labelled) for o in operands
    ):
        return pass_.unknown(node)
    dim = int(argument(node, 1, "dim", 0)) % len(pass_.shape(node))
    parts = []
    for operand in operands:
        assert isinstance(operand, fx.Node)
        part: Labelled = pass_.env[operand]
        axis = part.axis
        if axis is not None and axis >= dim:
            axis += 1
        parts.append(Labelled(part.ids, axis, (*part.shape[:dim], 1, *part.shape[dim:])))
    return _join(pass_, node, parts, dim)


def _join(pass_: "LabelPass", node: fx.Node, parts: list[Labelled], dim: int) -> Any:
    """Case 1: along the channels: one after the other. Case 2: along another axis: they meet."""
    axes = {part.axis for part in parts if part.axis is not None}
    shape = pass_.shape(node)
    if axes <= {dim} and (axes or dim == 1):
        vectors = [part.vector(dim) for part in parts]
        return Labelled.along(np.concatenate([v for v in vectors if v is not None]), dim, shape)
    if len(axes) > 1 or dim in axes:
        return pass_.refuse(node, "concatenates tensors whose channels lie along different axes")
    axis = next(iter(axes), None)
    if axis is None:
        return Labelled(pass_.meet([part.ids for part in parts]), None, shape)
    vectors = [part.vector(axis) for part in parts]
    return Labelled(pass_.meet([v for v in vectors if v is not None]), axis, shape)


def pad_amounts(node: fx.Node) -> tuple[Any, ...]:
    """The (before, after) pairs of an F.pad call, last axis first."""
    given = argument(node, 1, "pad", ())
    return tuple(given) if isinstance(given, tuple | list) else ()


def _pad(pass_: "LabelPass", node: fx.Node) -> Any:
    """Zero padding: new zero labels along the channel axis, the channel's own over space."""
    source: Labelled = pass_.env[node.all_input_nodes[0]]
    mode = argument(node, 2, "mode", "constant")
    value = argument(node, 3, "value")
    amounts = pad_amounts(node)
    shape = pass_.shape(node)
    plain = mode == "constant" and value in (None, 0, 0.0)
    if not amounts:
        return pass_.unknown(node)
    rank = len(source.shape)
    axis = 1 if source.axis is None else source.axis
    place = 2 * (rank - 1 - axis)
    if len(amounts) <= place or amounts[place : place + 2] == (0, 0):  # over space only
        # Mirrored padding of the other axes keeps channels apart in whatever mode.
        spread = Labelled(source.ids, source.axis, shape)
        return spread if plain or mode != "constant" else pass_.not_zero(node, spread)
    before, after = amounts[place : place + 2]
    whole = isinstance(before, int) and isinstance(after, int) and before >= 0 and after >= 0
    channels = source.vector(axis)
    if not plain or not whole or channels is None:
        return pass_.refuse(node, "a padding that is not with zeros behind or before the channels")
    zeros = pass_.labels.new(node.name, "pad", before + after, zero=True)
    joined = np.concatenate([zeros[:before], channels, zeros[before:]])
    return Labelled.along(joined, axis, shape)
