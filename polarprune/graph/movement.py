"""Label rules for operators that only move data: run them on the labels as they are.

Each rule first makes sure that the operator can still be written after a cut (cut.py rewrites
pads, views and concatenations, nothing else); what cannot is pinned, with the reason.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from polarprune.graph.labels import Labelled

if TYPE_CHECKING:
    from polarprune.graph.label_pass import LabelPass


def move_labels(pass_: "LabelPass", node: fx.Node, module: nn.Module | None) -> Any:
    """The labels of a movement operator's result."""
    if node.target is torch.cat:
        return _concatenate(pass_, node)
    if node.target is F.pad:
        return _pad(pass_, node)
    source = pass_.env[node.all_input_nodes[0]]
    reason = _inexpressible(pass_, node, source)
    if reason is not None:
        pass_.labels.refuse(node.name, reason, source)
        return pass_._opaque(node, reason)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _value(pass_.env[n]))
    if module is not None:
        return Labelled.of(module(source.full()))
    if node.op == "call_method":
        # Labels are expanded without copying, which view() refuses; reshape() gives the same.
        method = "reshape" if node.target == "view" else str(node.target)
        return Labelled.of(getattr(args[0], method)(*args[1:], **kwargs))
    assert callable(node.target)
    return Labelled.of(node.target(*args, **kwargs))


def _value(value: Any) -> Any:
    return value.full() if isinstance(value, Labelled) else value


def _inexpressible(pass_: "LabelPass", node: fx.Node, source: Labelled) -> str | None:
    """Why a movement could not be replayed on fewer channels, or None where it can."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "squeeze" and len(node.args) == 1 and not node.kwargs:
        return "squeeze without a dimension could drop the channel axis"
    if name == "squeeze":
        given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
        dims = given if isinstance(given, tuple | list) else (given,)
        if {int(d) % len(source.shape) for d in dims} & set(source.axes()):
            return "squeezes the channel axis, which a cut to one channel would drop"
    if name == "getitem":
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if any(not isinstance(i, int | slice) for i in index):
            return "indexing other than by slices and integers"
        if any(axis < len(index) and index[axis] != slice(None) for axis in source.axes()):
            return "slices the channel axis"
    if name in ("view", "reshape"):
        return _inexpressible_view(node, pass_._shape(node), source)
    return None


def view_sizes(node: fx.Node) -> tuple[Any, ...]:
    """The sizes that a view or reshape call asks for."""
    given = node.args[1:]
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else given


def _inexpressible_view(node: fx.Node, shape: tuple[int, ...], source: Labelled) -> str | None:
    moved = Labelled.of(source.full().reshape(shape)).axes()
    if len(moved) > 1:
        return "a view that lays channels along several axes"
    if node.kwargs:
        return "a view with keyword arguments"
    return None


def _concatenate(pass_: "LabelPass", node: fx.Node) -> Any:
    parts = [pass_.env[n] for n in node.all_input_nodes]
    operands = node.args[0]
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    same = isinstance(operands, tuple | list) and len(operands) == len(parts)
    if not same or not isinstance(dim, int) or dim % len(parts[0].shape) != 1:
        reason = "concatenates along an axis other than the channels'"
        pass_.labels.refuse(node.name, reason, *parts)
        return pass_._opaque(node, reason)
    vectors = [part.vector(1) for part in parts]
    if any(vector is None for vector in vectors):
        reason = "concatenates channels that are not laid along one axis"
        pass_.labels.refuse(node.name, reason, *parts)
        return pass_._opaque(node, reason)
    joined = np.concatenate([vector for vector in vectors if vector is not None])
    return Labelled.along(joined, 1, pass_._shape(node))


def pad_amounts(node: fx.Node) -> tuple[int, ...]:
    """The (before, after) pairs of an F.pad call, last axis first."""
    given = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else ())
    assert isinstance(given, tuple | list)
    return tuple(given)


def _pad(pass_: "LabelPass", node: fx.Node) -> Any:
    """Zero padding: new zero labels along the channel axis, the channel's own over space."""
    source = pass_.env[node.all_input_nodes[0]]
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    amounts = pad_amounts(node)
    shape = pass_._shape(node)
    channels = source.vector(1)
    # The pair of axis 1 is the (rank - 2)-th; spatial axes come first.
    place = 2 * (len(source.shape) - 2)
    if channels is not None and len(amounts) <= place:  # over space only, in whatever mode
        zeros_stay = mode != "constant" or value in (None, 0, 0.0)
        spread = Labelled.along(channels, 1, shape)
        return spread if zeros_stay else pass_._not_zero(node, spread)
    before, after = (*amounts, *[0] * (place + 2))[place : place + 2]
    plain = mode == "constant" and value in (None, 0, 0.0) and channels is not None
    if not plain or before < 0 or after < 0 or len(amounts) > place + 2:
        reason = "a padding that is not with zeros behind or before the channels"
        pass_.labels.refuse(node.name, reason, source)
        return pass_._opaque(node, reason)
    assert channels is not None
    zeros = pass_.labels.new(node.name, "pad", before + after, zero=True)
    return Labelled.along(np.concatenate([zeros[:before], channels, zeros[before:]]), 1, shape)
