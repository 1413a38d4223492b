"""Sizes that a graph reads off its tensors: `x.size(1)`, `x.shape[1]`, `x.shape[2:]`.

A cut changes some of them, so each is brought into a form that names one axis.
"""

import operator
from typing import Any

from torch import fx

from polarprune.graph.dead_code import drop_dead
from polarprune.graph.operators import reads_attribute
from polarprune.graph.shapes import Values


def size_read(node: fx.Node) -> tuple[fx.Node, int] | None:
    """(tensor, axis) where a node is the size of one axis of a tensor, else None."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        axis = node.args[1]
        return (node.all_input_nodes[0], axis) if isinstance(axis, int) else None
    if node.op == "call_function" and node.target is operator.getitem and node.all_input_nodes:
        whole, index = node.all_input_nodes[0], node.args[1]
        if _is_shape(whole) and isinstance(index, int):
            return whole.all_input_nodes[0], index
    return None


def _is_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target) == "size" and len(node.args) == 1 and not node.kwargs
    return reads_attribute(node) and str(node.args[1]) == "shape"


def write_sizes_out(graph: fx.Graph, values: Values) -> None:
    """Every use of a whole shape, or of a slice of one, as a tuple of sizes of single axes."""
    for shape in list(graph.nodes):
        if not _is_shape(shape):
            continue
        rank = len(values[shape.name])
        singles: dict[int, fx.Node] = {}
        for user in list(shape.users):
            index = user.args[1] if user.target is operator.getitem else None
            if isinstance(index, slice) and user.args[0] is shape:
                if any(isinstance(p, fx.Node) for p in (index.start, index.stop, index.step)):
                    continue
                axes = list(range(rank))[index]
                for reader in list(user.users):
                    _write_out(graph, reader, user, axes, shape, singles)
            elif not isinstance(index, int):
                _write_out(graph, user, shape, list(range(rank)), shape, singles)
    drop_dead(graph)


def _write_out(
    graph: fx.Graph,
    reader: fx.Node,
    whole: fx.Node,
    axes: list[int],
    shape: fx.Node,
    singles: dict[int, fx.Node],
) -> None:
    if reader.target is operator.getitem or reads_attribute(reader):
        return
    for axis in axes:
        if axis not in singles:
            with graph.inserting_after(shape):
                singles[axis] = graph.call_function(operator.getitem, (shape, axis))

    def replace(argument: Any) -> Any:
        return tuple(singles[axis] for axis in axes) if argument is whole else argument

    reader.args = fx.node.map_arg(reader.args, replace)
    reader.kwargs = fx.node.map_arg(reader.kwargs, replace)
