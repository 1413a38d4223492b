"""First stage, part: a channel shuffle that is written as a view, a transposition and a view."""

import torch
from torch import fx

from polarprune.graph.dead_code import drop_dead
from polarprune.graph.operators import operator_name
from polarprune.graph.shapes import Values

_VIEWS = ("view", "reshape", "flatten")


def name_shuffles(graph: fx.Graph, values: Values) -> None:
    """Each such chain becomes one channel_shuffle, in place.

    (b, g * k, ...) -> view (b, g, k, ...) -> transpose (1, 2) -> view (b, g * k, ...).
    """
    for last in list(graph.nodes):
        middle = _before(last, _VIEWS)
        if middle is not None and operator_name(middle) == "contiguous":
            middle = _before(middle, None)
        first = None if middle is None else _before(middle, ("transpose", "permute", "swapaxes"))
        if first is None or middle is None or operator_name(first) not in _VIEWS:
            continue
        source = first.args[0]
        if not isinstance(source, fx.Node) or not _swaps_groups(middle, len(_shape(first, values))):
            continue
        before, parted, after = (_shape(n, values) for n in (source, first, last))
        if len(before) > 2 and after == before and _parts_channels(before, parted):
            with graph.inserting_before(last):
                named = graph.call_function(torch.channel_shuffle, (source, parted[1]))
            named.meta = dict(last.meta)
            last.replace_all_uses_with(named)
    drop_dead(graph)


def _before(node: fx.Node, names: tuple[str, ...] | None) -> fx.Node | None:
    """The node that a one-input node of such a name reads, if nobody else reads that."""
    source = node.args[0] if node.args else None
    if names is not None and (operator_name(node) not in names or node.op == "call_module"):
        return None
    return source if isinstance(source, fx.Node) and len(source.users) == 1 else None


def _shape(node: fx.Node, values: Values) -> tuple[int, ...]:
    return tuple(getattr(values[node.name], "shape", ()))


def _parts_channels(before: tuple[int, ...], parted: tuple[int, ...]) -> bool:
    return (
        len(parted) == len(before) + 1
        and parted[0] == before[0]
        and parted[1] * parted[2] == before[1]
        and parted[3:] == before[2:]
    )


def _swaps_groups(node: fx.Node, rank: int) -> bool:
    if operator_name(node) in ("transpose", "swapaxes"):
        return {a % rank for a in node.args[1:] if isinstance(a, int)} == {1, 2}
    given = node.args[1:]
    order = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given
    return tuple(order) == (0, 2, 1, *range(3, rank))
