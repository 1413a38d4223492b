"""Channel shuffles as exporters write them: Reshape (n, g, c/g, h, w), Transpose, Reshape.

Looked at as one operator that reorders channels: seen one by one, the channels between would lie
along two axes, and only cuts that keep equal channels of all groups could be written.
"""

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.labels import Spread
from polarprune_export.onnx_collapse.operators import attribute, kind_of

if TYPE_CHECKING:
    from polarprune_export.onnx_collapse.analysis import Analysis
    from polarprune_export.onnx_collapse.edits import Edit
    from polarprune_export.onnx_collapse.needs import Needs


def starts_shuffle(
    analysis: "Analysis", node: ir.Node, found: Spread
) -> tuple[ir.Node, ir.Node] | None:
    """The Transpose and the Reshape that make a channel shuffle of this Reshape."""
    first = node.outputs[0]
    nodes = [node]
    for wanted in ("Transpose", "Reshape"):
        users = list(nodes[-1].outputs[0].uses())
        if len(users) != 1 or nodes[-1].outputs[0].is_graph_output():
            return None
        user, index = users[0]
        if kind_of(user) != wanted or index != 0 or user.graph is not analysis.graph:
            return None
        nodes.append(user)
    source = node.inputs[0]
    assert source is not None
    last = nodes[2].outputs[0]
    shape, inner = analysis.shape(source), analysis.shape(first)
    if shape is None or inner is None or analysis.shape(last) is None or found.axis != 1:
        return None
    if not analysis.probe.agree(str(source.name), str(last.name)):
        return None  # sides of equal size may have changed places at the first
    if not all(analysis.is_settled(nodes[place].inputs[1]) for place in (0, 2)):
        return None
    apart = len(inner) == len(shape) + 1 and (inner[0], *inner[3:]) == (shape[0], *shape[2:])
    swapped = [0, 2, 1, *range(3, len(inner))]
    if not apart or list(attribute(nodes[1], "perm", ())) != swapped:
        return None
    return nodes[1], nodes[2]


def end_shuffle(analysis: "Analysis", node: ir.Node) -> bool:
    """The end of a shuffle: its labels are those of the source of the first Reshape, reordered."""
    if kind_of(node) != "Reshape" or node.inputs[0] is None:
        return True
    middle = node.inputs[0].producer()
    if middle is None or kind_of(middle) != "Transpose" or middle.inputs[0] is None:
        return True
    start = middle.inputs[0].producer()
    if start is None or kind_of(start) != "Reshape" or start.inputs[0] is None:
        return True
    source = start.inputs[0]
    found = analysis.spreads.get(source)
    if found is None or starts_shuffle(analysis, start, found) is None:
        return True
    inner = analysis.shape(start.outputs[0])
    assert inner is not None
    order = np.arange(len(found.labels)).reshape(inner[1], inner[2]).T.reshape(-1)
    if not analysis.put(node.outputs[0], 1, found.labels[order], found.known[order]):
        analysis.read_all(source)
        return True
    analysis.shuffles[node] = (source, order)
    analysis.flow(node, analysis.spreads[node.outputs[0]].positions, found.positions[order])
    return True


def plan_shuffle(needs: "Needs", node: ir.Node) -> "dict[ir.Node, Edit]":
    """A shuffle of fewer groups or fewer channels a group; else a Gather in the new order."""
    from polarprune_export.onnx_collapse.edits import Edit, asked_sizes

    analysis = needs.analysis
    source, order = analysis.shuffles[node]
    kept = needs.kept(source)
    rank = np.cumsum(kept) - 1
    wanted = rank[order[kept[order]]]
    middle = node.inputs[0].producer() if node.inputs[0] is not None else None
    start = middle.inputs[0].producer() if middle is not None and middle.inputs[0] else None
    assert start is not None
    inner = analysis.shape(start.outputs[0])
    assert inner is not None
    groups = int(kept.reshape(inner[1], inner[2]).any(axis=1).sum())
    each, rest = divmod(len(wanted), groups)
    if not rest and np.array_equal(np.arange(len(wanted)).reshape(groups, each).T.ravel(), wanted):
        edits = {start: Edit(), node: Edit()}
        for where, axis, size in ((start, 1, groups), (start, 2, each), (node, 1, len(wanted))):
            if asked_sizes(analysis, where)[axis] != -1:
                edits[where].elements.setdefault(1, {})[axis] = size
        return edits
    return {node: Edit(picked=(start, 1, wanted))}
