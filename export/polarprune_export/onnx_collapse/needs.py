"""The backward pass: whose content is read, which channels therefore stay, what is still computed.

Content is followed position by position: a channel's content may be unneeded where the channel has
to stay for another's sake (a filter behind whose zero scale others still add to the same stream);
what only made that content goes then. A channel stays when the content of any position of its class
is needed, or to keep an operator writable: equal counts a group, one channel where all would go.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.analysis import Analysis
from polarprune_export.onnx_collapse.labels import Flow, Ids, Mask
from polarprune_export.onnx_collapse.mixes import Mix
from polarprune_export.onnx_collapse.operators import attribute, captured, kind_of


@dataclass(frozen=True)
class Needs:
    """What stays.

    Attributes:
        content: per position of the graph whether anybody reads what it holds.
        present: per label whether its class stays.
        live: the nodes that an output is still computed with.
    """

    analysis: Analysis
    content: Mask
    present: Mask
    live: set[ir.Node]

    def kept(self, value: ir.Value) -> Mask:
        """(n,): which channels of a value with a spread stay."""
        mask: Mask = self.present[self.analysis.spreads[value].labels]
        return mask

    def is_cut(self, value: ir.Value | None) -> bool:
        """Whether a value loses channels."""
        return value in self.analysis.spreads and not self.kept(value).all()


def find_needs(analysis: Analysis) -> Needs:
    """The smallest set of channels that outputs, pins and operators need."""
    content = needed_content(analysis)
    labels = analysis.all_labels()
    staying = np.zeros(analysis.labels.count, dtype=bool)  # by root
    staying[analysis.roots[labels[content]]] = True
    staying |= analysis.labels.pinned(analysis.roots)
    mixes = [step for step in analysis.steps if isinstance(step, Mix)]
    while True:
        present = staying[analysis.roots]
        live = live_nodes(analysis, present)
        before = staying.copy()
        for mix in mixes:
            if mix.node in live and mix.groups > 1:
                _level(analysis, labels, mix, staying)
        for node in analysis.graph:  # in order: which channel is kept must not be chance
            if node in live:
                _keep_one(analysis, node, staying)
        if np.array_equal(before, staying):
            return Needs(analysis, content, present, live)


def needed_content(analysis: Analysis) -> Mask:
    """One pass against the order of the nodes."""
    content = np.zeros(analysis.count, dtype=bool)
    for positions in analysis.read:
        content[positions] = True
    # A known position holds its number whatever its sources hold: a filter of zeros, a scale of
    # zero, a factor of zero; so it asks for nothing.
    unknown = np.isnan(analysis.all_known())
    for step in reversed(analysis.steps):
        if isinstance(step, Flow):
            wanted = content[step.outputs] & unknown[step.outputs]
            content[step.inputs[wanted]] = True
        elif step.inputs is not None:
            rows = content[step.outputs] & unknown[step.outputs]
            content[step.inputs[step.wanted(rows)]] = True
    return content


def live_nodes(analysis: Analysis, present: Mask) -> set[ir.Node]:
    """What the outputs are computed with, when concatenations drop what is empty."""
    live: set[ir.Node] = set()
    waiting = [value.producer() for value in analysis.graph.outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in live or node.graph is not analysis.graph:
            continue
        live.add(node)
        for value in (*node.inputs, *captured(node)):
            if value is not None and not drops(analysis, present, node, value):
                waiting.append(value.producer())
    return live


def drops(analysis: Analysis, present: Mask, node: ir.Node, value: ir.Value) -> bool:
    """Whether a concatenation is written without an operand, of which no channel is left."""
    spread = analysis.spreads.get(value)
    if spread is None or kind_of(node) != "Concat" or node.outputs[0] not in analysis.spreads:
        return False
    shape = analysis.shape(node.outputs[0])
    assert shape is not None
    if int(attribute(node, "axis", 1)) % len(shape) != spread.axis:
        return False
    return not present[spread.labels].any()


def _keep_one(analysis: Analysis, node: ir.Node, staying: Mask) -> None:
    """No operator reads a value without channels."""
    for value in node.inputs:
        spread = analysis.spreads.get(value) if value is not None else None
        if spread is None or kind_of(node) == "Concat":
            continue
        roots = analysis.roots[spread.labels]
        if not staying[roots].any():
            staying[roots[0]] = True


def _level(analysis: Analysis, labels: Ids, mix: Mix, staying: Mask) -> None:
    """Whole groups go; those that stay have equally many inputs and equally many outputs."""
    c_out, c_in = mix.shape
    sides = [(c_out, analysis.roots[labels[mix.outputs]])]
    alive = np.zeros(mix.groups, dtype=bool)
    if mix.inputs is None:
        alive[:] = True
    else:
        sides.append((c_in, analysis.roots[labels[mix.inputs]]))
    for count, roots in sides:
        alive |= staying[roots].reshape(mix.groups, count // mix.groups).any(axis=1)
    if not alive.any():
        return
    for _, roots in sides:
        rows = roots.reshape(mix.groups, -1)[alive]
        most = max(1, int(staying[rows].sum(axis=1).max()))
        for row in rows:
            for root in row:
                if staying[row].sum() >= most:
                    break
                staying[root] = True
