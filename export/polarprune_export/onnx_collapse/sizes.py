"""Arithmetic on sizes: what `Shape` says of channels, followed to where it is used.

A number that is the same at every image size is known, with the sides of values that it was read
from. When one of those is cut, the number is written out as a constant where it is used (the cut's
own sizes take precedence); a number that mixes channels with a free side pins the channels.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.constants import Constants
from polarprune_export.onnx_collapse.operators import attribute, kind_of
from polarprune_export.onnx_collapse.probing import Probe
from polarprune_export.onnx_collapse.single_nodes import run_node
from polarprune_export.onnx_session import Array

_MOVING = frozenset({
    "Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze",
})  # fmt: skip
_ARITHMETIC = frozenset({
    "Abs", "Add", "Ceil", "Div", "Floor", "Max", "Min", "Mod", "Mul", "Neg", "Sub",
})  # fmt: skip
_LONGEST = 64  # elements; longer constants are no sizes

Side = tuple[ir.Value, int]
"""A value and one of its axes."""


@dataclass(frozen=True)
class Element:
    """One number: known where it does not depend on a free side; the sides it was read from."""

    number: float | None  # whole numbers as int: the largest int64, an end, is no float
    sides: frozenset[Side] = frozenset()


@dataclass(frozen=True)
class Numbers:
    """A scalar or a list of elements."""

    elements: tuple[Element, ...]
    scalar: bool


class Sizes:
    """Per value that is arithmetic on sizes: its elements."""

    def __init__(self, graph: ir.Graph, probe: Probe, constants: Constants) -> None:
        self._probe, self._constants = probe, constants
        self.found: dict[ir.Value, Numbers] = {}
        self.made_by: set[ir.Node] = set()
        for node in graph:
            result = self._follow(node)
            if result is not None:
                self.found[node.outputs[0]] = result
                self.made_by.add(node)

    def used(self, node: ir.Node, index: int) -> Numbers | None:
        """The elements that an operator outside of this arithmetic reads at one of its inputs."""
        value = node.inputs[index]
        return None if value is None or node in self.made_by else self.found.get(value)

    def _follow(self, node: ir.Node) -> Numbers | None:
        kind = kind_of(node)
        if kind in ("Shape", "Size"):
            return self._shape(node)
        if kind not in _MOVING | _ARITHMETIC or len(node.outputs) != 1:
            return None
        if not any(value in self.found for value in node.inputs):
            return None
        given = [self._of(value) for value in node.inputs]
        if any(
            g is None and value is not None for g, value in zip(given, node.inputs, strict=True)
        ):
            return None
        present = [g for g in given if g is not None]
        return self._arithmetic(node, present) if kind in _ARITHMETIC else self._move(node, present)

    def _of(self, value: ir.Value | None) -> Numbers | None:
        if value is None or value in self.found:
            return None if value is None else self.found[value]
        array = self._constants.array(value)
        if (
            array is None
            or array.ndim > 1
            or array.size > _LONGEST
            or array.dtype.kind not in "iuf"
        ):
            return None
        elements = tuple(Element(number) for number in array.reshape(-1).tolist())
        return Numbers(elements, array.ndim == 0)

    def _shape(self, node: ir.Node) -> Numbers | None:
        value = node.inputs[0]
        assert value is not None
        shape = self._probe.shapes.get(str(value.name))
        if shape is None:
            return None
        fixed = self._probe.fixed[str(value.name)]
        if kind_of(node) == "Size":
            return Numbers((Element(None, frozenset((value, a) for a in range(len(shape)))),), True)
        axes = range(len(shape))[attribute(node, "start", 0) : attribute(node, "end", len(shape))]
        return Numbers(
            tuple(
                Element(shape[a], frozenset([(value, a)])) if fixed[a] else Element(None)
                for a in axes
            ),
            False,
        )

    def _move(self, node: ir.Node, given: list[Numbers]) -> Numbers | None:
        """The operator itself, on the places of the elements."""
        if kind_of(node) == "Concat":
            return Numbers(tuple(e for numbers in given for e in numbers.elements), False)
        if kind_of(node) == "Cast":
            return given[0]
        data, *parameters = given
        places: Array = np.arange(len(data.elements))
        arrays: list[Array | None] = [places.reshape(()) if data.scalar else places]
        for numbers in parameters:
            values = [e.number for e in numbers.elements]
            if None in values:
                return None
            array = np.array(values, dtype=np.int64)
            arrays.append(array.reshape(()) if numbers.scalar else array)
        results = run_node(node, arrays, self._constants.opsets)
        if results is None or results[0].ndim > 1:
            return None
        picked = tuple(data.elements[int(place)] for place in results[0].reshape(-1))
        return Numbers(picked, results[0].ndim == 0)

    def _arithmetic(self, node: ir.Node, given: list[Numbers]) -> Numbers | None:
        length = max(len(numbers.elements) for numbers in given)
        if any(len(numbers.elements) not in (1, length) for numbers in given):
            return None
        name = str(node.outputs[0].name)
        dtype = self._probe.dtypes.get(name, np.dtype(np.int64))
        elements = []
        for place in range(length):
            operands = [n.elements[place if len(n.elements) > 1 else 0] for n in given]
            sides = frozenset(side for operand in operands for side in operand.sides)
            number = None
            if all(operand.number is not None for operand in operands):
                arrays = [np.array(operand.number).astype(dtype) for operand in operands]
                results = run_node(node, arrays, self._constants.opsets)
                number = None if results is None else results[0].item()
            elements.append(Element(number, sides))
        return Numbers(tuple(elements), all(numbers.scalar for numbers in given))
