"""The forward pass: where every channel goes, what it is tied to, and what is known of it.

Positions are (value, channel). Per value one axis carries channels (labels.py); element-wise
operators tie the labels that meet, mixing operators make new ones, operators that only move data
run on them, and what is not understood pins and reads everything that it sees. What a position
holds in every image is followed beside that.

"Known" is meant for finite values: 0 x = 0, and a weight of zero reads nothing, as on the torch
side. A channel that carries an infinity or a NaN into such a product is not kept for its sake.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse import operators
from polarprune_export.onnx_collapse.channel_rules import follow_axis_rules
from polarprune_export.onnx_collapse.constants import Constants
from polarprune_export.onnx_collapse.elementwise import combine
from polarprune_export.onnx_collapse.labels import ConstantUse, Flow, Ids, Known, Labels, Spread
from polarprune_export.onnx_collapse.mixes import Mix, make_mix
from polarprune_export.onnx_collapse.movement import move
from polarprune_export.onnx_collapse.operators import attribute, captured, kind_of, words_for
from polarprune_export.onnx_collapse.probing import Probe
from polarprune_export.onnx_collapse.sizes import Sizes
from polarprune_export.onnx_session import Array

REFUSED = {
    False: "combines channels, or moves them in a way that is not known",
    True: "has weights that are computed, or channels on another axis",
}


class Analysis:
    """All that the later stages ask about one graph.

    Attributes:
        spreads: where channels lie, of the values in which they can be told apart.
        steps: per node in order how content flows through it.
        moves: the input positions (-1: a pad) of each output of a node that moves channels.
        pinned: why channels had to stay, in words.
    """

    def __init__(
        self, model: ir.Model, probe: Probe, constants: Constants, frozen: Iterable[ir.Node] = ()
    ) -> None:
        self.graph, self.probe, self.constants = model.graph, probe, constants
        self.labels = Labels()
        self.sizes = Sizes(model.graph, probe, constants)
        self.spreads: dict[ir.Value, Spread] = {}
        self.known_positions: list[Known] = []
        self.label_positions: list[Ids] = []
        self.steps: list[Flow | Mix] = []
        self.moves: dict[ir.Node, list[Ids]] = {}
        self.shuffles: dict[ir.Node, tuple[ir.Value, Ids]] = {}
        self.constant_uses: list[ConstantUse] = []
        self.read: list[Ids] = []
        self.pinned: dict[str, None] = {}
        self.count = 0
        self._frozen = set(frozen)
        self._rules: dict[str, Callable[[Analysis, ir.Node], bool]] = {}
        for names, rule in (
            (operators.ELEMENTWISE, combine),
            (operators.MIXING, _mix),
            (operators.MOVING, move),
            (operators.PER_CHANNEL, follow_axis_rules),
            (operators.SPATIAL, follow_axis_rules),
            (operators.REDUCING, follow_axis_rules),
            (operators.NORMALISING, follow_axis_rules),
        ):
            self._rules |= dict.fromkeys(names, rule)
        for node in self.graph:
            self._visit(node)
        for value in self.graph.outputs:
            self.read_all(value)
        self._pin_mixed_sizes()
        self.roots = self.labels.roots()

    def _visit(self, node: ir.Node) -> None:
        kind = kind_of(node)
        if node in self.sizes.made_by or kind == "Constant":
            return
        if all(self.constants.array(value) is not None for value in node.outputs):
            return
        rule = self._rules.get(kind)
        if rule is None:
            self.refuse(node, f"{words_for(node)} is not known to keep channels apart")
            return
        uses = len(self.constant_uses)
        if not rule(self, node):
            del self.constant_uses[uses:]
            self.refuse(node, f"{words_for(node)} {REFUSED[kind in operators.MIXING]}")
        elif node in self._frozen:
            for value in (*node.inputs, *node.outputs):
                self.pin_all(value)
            self.pinned[f"{words_for(node)} cannot be written for fewer channels"] = None

    def refuse(self, node: ir.Node, reason: str) -> None:
        """Pin and read whatever the node reads, what its subgraphs take from outside included."""
        seen = False
        for value in (*node.inputs, *captured(node)):
            if value in self.spreads:
                seen = True
                self.read_all(value)
        if seen:
            self.pinned[reason] = None

    def read_all(self, value: ir.Value | None) -> None:
        """All channels of a value are needed as they are."""
        if value is not None and value in self.spreads:
            self.read.append(self.spreads[value].positions)

    def pin_all(self, value: ir.Value | None) -> None:
        """All channels of a value have to stay, whatever they hold."""
        if value is not None and value in self.spreads:
            self.labels.pin(self.spreads[value].labels)

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """At the first probed size; None where it is not a tensor of known type."""
        return self.probe.shapes.get(str(value.name))

    def put(self, value: ir.Value, axis: int, labels: Ids, known: Known) -> bool:
        """Says where a value's channels lie; False (and then nothing) along a free side."""
        shape = self.shape(value)
        if shape is None or not self.probe.fixed[str(value.name)][axis]:
            self.labels.pin(labels)
            return False
        assert shape[axis] == len(labels)
        clean = np.where(np.isfinite(known), known, np.nan)
        self.spreads[value] = Spread(axis, labels, clean, self.count)
        self.known_positions.append(clean)
        self.label_positions.append(labels)
        self.count += len(labels)
        return True

    def along(self, value: ir.Value, axis: int) -> Spread | None:
        """A value's spread along an axis; pinned labels where none are known, None on another."""
        found = self.spreads.get(value)
        if found is None:
            shape = self.shape(value)
            if shape is None or not 0 <= axis < len(shape):
                return None
            labels = self.labels.new(shape[axis])
            self.labels.pin(labels)
            if not self.put(value, axis, labels, np.full(len(labels), np.nan)):
                return None
            found = self.spreads[value]
        return found if found.axis == axis else None

    def flow(self, node: ir.Node, outputs: Ids, inputs: Ids) -> None:
        """Content of these outputs is made of these inputs."""
        self.steps.append(Flow(node, outputs, inputs))

    def number(self, value: ir.Value | None) -> Array | None:
        """A parameter's value at the first probed size."""
        if value is None:
            return None
        constant = self.constants.array(value)
        return self.probe.numbers.get(str(value.name)) if constant is None else constant

    def listed(self, node: ir.Node, index: int, name: str) -> list[float | None] | None:
        """A parameter, an input or an attribute; None for each number that is not the same always.

        None where the parameter is not given.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            stated = attribute(node, name)
            return None if stated is None else list(stated)
        constant = self.constants.array(value)
        if constant is not None:
            return list(constant.reshape(-1).tolist())
        if value in self.sizes.found:
            return [element.number for element in self.sizes.found[value].elements]
        number = self.probe.numbers.get(str(value.name))
        return [None] * (1 if number is None else number.size)

    def is_settled(self, value: ir.Value | None) -> bool:
        """Whether a parameter is constant, or computed from sizes alone: not from an input."""
        known = value is None or value in self.sizes.found
        return known or self.constants.array(value) is not None

    def all_known(self) -> Known:
        """Per position of the graph what is known of it."""
        return np.concatenate([np.zeros(0), *self.known_positions])

    def all_labels(self) -> Ids:
        """Per position of the graph its label."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.label_positions])

    def _pin_mixed_sizes(self) -> None:
        for node in self.graph:
            for index in range(len(node.inputs)):
                numbers = self.sizes.used(node, index)
                for element in () if numbers is None else numbers.elements:
                    for value, axis in element.sides if element.number is None else ():
                        spread = self.spreads.get(value)
                        if spread is not None and spread.axis == axis:
                            self.pin_all(value)
                            self.pinned[f"{words_for(node)} computes with a channel count"] = None
        # Sizes that are outputs, or read inside of a subgraph, cannot be written out.
        for value, numbers in self.sizes.found.items():
            outside = any(user.graph is not self.graph for user, _ in value.uses())
            if outside or value.is_graph_output():
                for source, axis in (side for e in numbers.elements for side in e.sides):
                    if source in self.spreads and self.spreads[source].axis == axis:
                        self.pin_all(source)
                        self.pinned[f"the channel count of {source.name!r} is given out"] = None


def _mix(analysis: Analysis, node: ir.Node) -> bool:
    """New labels for the outputs; a row of weights says what each is made of."""
    source, kind = node.inputs[0], kind_of(node)
    result = node.outputs[0]
    shape, given = analysis.shape(result), None if source is None else analysis.shape(source)
    if source is None or shape is None or given is None or len(shape) < 2 or len(given) < 2:
        return False
    axis = len(given) - 1 if kind == "MatMul" else 1
    if kind == "Gemm" and attribute(node, "transA", 0):
        return False
    found = analysis.spreads.get(source)
    if found is not None and found.axis != axis:
        return kind == "MatMul" and _carry(analysis, node, found)
    known = np.full(given[axis], np.nan) if found is None else found.known
    mix = make_mix(node, analysis.constants, known)
    if mix is None:
        return False
    out_axis = len(shape) - 1 if kind == "MatMul" else 1
    labels = analysis.labels.new(shape[out_axis])
    if not analysis.put(result, out_axis, labels, mix.output_constants()):
        return False
    analysis.steps.append(
        replace(
            mix,
            inputs=None if found is None else found.positions,
            outputs=analysis.spreads[result].positions,
        )
    )
    return True


def _carry(analysis: Analysis, node: ir.Node, found: Spread) -> bool:
    """A matrix product over another axis than the channels': each row keeps to itself."""
    source, weight = node.inputs[0], analysis.constants.array(node.inputs[1])
    result = node.outputs[0]
    assert source is not None
    shape, given = analysis.shape(result), analysis.shape(source)
    if weight is None or weight.ndim != 2 or shape is None or given is None:
        return False
    if len(shape) != len(given):
        return False
    known = np.where(found.known == 0, 0.0, np.nan)
    if not analysis.put(result, found.axis, found.labels, known):
        return False
    analysis.flow(node, analysis.spreads[result].positions, found.positions)
    return True
