"""What one node is written with after a cut."""

from dataclasses import dataclass, field

import onnx_ir as ir

from polarprune_export.onnx_collapse.analysis import Analysis
from polarprune_export.onnx_collapse.labels import Ids
from polarprune_export.onnx_session import Array


class CannotBeWritten(Exception):
    """The operator has no form for these channels."""


@dataclass
class Edit:
    """New parameters of one node.

    Attributes:
        elements: per input the elements of a list of sizes that change.
        constants: per input the constant that takes its place.
        attributes: new values, None for one that goes.
        dropped: outputs that go.
        picked: (node, axis, places): the result becomes a Gather from that node's first input,
            which another edit may have replaced by then.
    """

    elements: dict[int, dict[int, float]] = field(default_factory=dict)
    constants: dict[int, Array] = field(default_factory=dict)
    attributes: dict[str, list[int] | None] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    picked: tuple[ir.Node, int, Ids] | None = None


def asked_sizes(analysis: Analysis, node: ir.Node) -> Array:
    """The sizes that a node is given, at the first probed size."""
    number = analysis.number(node.inputs[1])
    if number is None:
        raise CannotBeWritten
    return number


def rewritten(node: ir.Node, edit: Edit) -> ir.Node:
    """A loose copy of a node, its attributes and the number of its outputs as edited."""
    attributes = {
        name: given.value for name, given in node.attributes.items() if name not in edit.attributes
    }
    attributes |= {name: value for name, value in edit.attributes.items() if value is not None}
    inputs = [None if value is None else ir.val(str(value.name)) for value in node.inputs]
    count = len(node.outputs) - len(edit.dropped)
    outputs = [ir.val(f"result_{i}") for i in range(count)]
    return ir.node(node.op_type, inputs, attributes, outputs=outputs, domain=node.domain)
