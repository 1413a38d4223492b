"""Constants put into a graph: under the old name where nobody else reads it, else a new one."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.constants import FIRST_IR_WITH_DEFAULTS
from polarprune_export.onnx_collapse.operators import attribute, kind_of, opsets_of
from polarprune_export.onnx_collapse.single_nodes import run_node
from polarprune_export.onnx_session import Array

FIRST_SLICE_WITH_INPUTS = 10


class Store:
    """Writes constants into one model."""

    def __init__(self, model: ir.Model) -> None:
        self._model, self._graph = model, model.graph
        self._names = names_in(self._graph)
        self._made: dict[tuple[str, str, tuple[int, ...], str], ir.Value] = {}

    def free_name(self, wanted: str) -> str:
        """The name, or the name with a number behind it."""
        name, number = wanted, 0
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name

    def new(self, name: str, array: Array) -> ir.Value:
        """An initializer; the same array asked for under the same name is stored once."""
        array = np.ascontiguousarray(array)
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        key = (name, str(array.dtype), array.shape, digest)
        if key not in self._made:
            free = self.free_name(name)
            tensor = ir.tensor(array, name=free)
            value = ir.Value(
                name=free,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self._graph.register_initializer(value)
            if self._model.ir_version < FIRST_IR_WITH_DEFAULTS:
                self._graph.inputs.append(value)
            self._made[key] = value
        return self._made[key]

    def put(self, node: ir.Node, index: int, array: Array) -> None:
        """A node's constant input becomes this array."""
        value = node.inputs[index]
        assert value is not None
        alone = len(list(value.uses())) == 1 and not value.is_graph_output()
        if value.is_initializer() and alone:
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
            value.shape = ir.Shape(array.shape)
        else:
            node.replace_input_with(index, self.new(str(value.name), array))

    def cut(
        self, node: ir.Node, index: int, cut: Callable[[Array], Array], axes: dict[int, Array]
    ) -> None:
        """Cuts a node's constant input; behind a DequantizeLinear the whole numbers.

        Args:
            axes: per axis that is cut alike everywhere the places that stay, for its scales.
        """
        value = node.inputs[index]
        assert value is not None
        producer = value.producer()
        if producer is None or kind_of(producer) != "DequantizeLinear":
            array = constant_of(value, self._opsets())
            self.put(node, index, cut(array))
            return
        inputs: list[ir.Value | None] = []
        for place, given in enumerate(producer.inputs):
            if given is None:
                inputs.append(None)
                continue
            array = constant_of(given, self._opsets())
            if place == 0:
                array = cut(array)
            elif array.size > 1:
                array = array[axes[int(attribute(producer, "axis", 1)) % _rank(producer)]]
            inputs.append(self.new(str(given.name), array))
        twin = ir.Node(
            producer.domain,
            producer.op_type,
            inputs,
            list(producer.attributes.values()),
            name=self.free_name(str(producer.name)),
        )
        twin.outputs[0].name = self.free_name(str(value.name))
        twin.outputs[0].type = value.type
        self._graph.insert_before(node, twin)
        node.replace_input_with(index, twin.outputs[0])

    def write_elements(
        self,
        node: ir.Node,
        index: int,
        elements: dict[int, float],
        length: int,
        dtype: "np.dtype[Any]",
    ) -> None:
        """Some elements of a list of sizes become constants; the others stay computed.

        [1, 64, h, w] computed at run time becomes Concat(Slice(old, 0:1), [48], Slice(old, 2:4)).
        """
        value = node.inputs[index]
        assert value is not None
        parts: list[ir.Value] = []
        place = 0
        while place < length:
            end = place + 1
            chosen = place in elements
            while end < length and (end in elements) == chosen:
                end += 1
            if chosen:
                numbers = np.array([elements[i] for i in range(place, end)], dtype)
                parts.append(self.new(f"{value.name}_size", numbers))
            else:
                parts.append(self._slice(node, value, place, end))
            place = end
        if len(parts) > 1:
            joined = self._node("Concat", parts, {"axis": 0}, value)
            self._graph.insert_before(node, joined)
            parts = [joined.outputs[0]]
        node.replace_input_with(index, parts[0])

    def _slice(self, node: ir.Node, value: ir.Value, start: int, end: int) -> ir.Value:
        if self._opsets().get("", 0) >= FIRST_SLICE_WITH_INPUTS:
            numbers = [("start", start), ("end", end), ("axis", 0)]
            inputs = [self.new(f"{value.name}_{n}", np.array([v], np.int64)) for n, v in numbers]
            made = self._node("Slice", [value, *inputs], {}, value)
        else:
            bounds = {"starts": [start], "ends": [end], "axes": [0]}
            made = self._node("Slice", [value], bounds, value)
        self._graph.insert_before(node, made)
        return made.outputs[0]

    def _node(
        self, kind: str, inputs: list[ir.Value], attributes: Mapping[str, object], like: ir.Value
    ) -> ir.Node:
        node = ir.node(kind, inputs, attributes, name=self.free_name(f"{like.name}_{kind}"))  # type: ignore[arg-type]
        node.outputs[0].name = self.free_name(f"{like.name}_cut")
        node.outputs[0].type = like.type
        return node

    def gather(self, node: ir.Node, source: ir.Value, axis: int, indices: Array) -> ir.Value:
        """A pick of channels, put before a node."""
        picked = self.new(f"{source.name}_places", indices.astype(np.int64))
        made = self._node("Gather", [source, picked], {"axis": axis}, source)
        self._graph.insert_before(node, made)
        return made.outputs[0]

    def _opsets(self) -> dict[str, int]:
        return opsets_of(self._model)


def constant_of(value: ir.Value, opsets: dict[str, int]) -> Array:
    """The array of a value that is constant."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        stored: Array = tensor.numpy()
        return stored
    node = value.producer()
    assert node is not None
    arrays = [None if given is None else constant_of(given, opsets) for given in node.inputs]
    results = run_node(node, arrays, opsets)
    assert results is not None
    return results[[output for output in node.outputs if output.name].index(value)]


def names_in(graph: ir.Graph) -> set[str]:
    """All names of values and nodes, those in subgraphs included."""
    names = {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph.all_nodes():
        names.add(str(node.name))
        names |= {str(value.name) for value in (*node.inputs, *node.outputs) if value is not None}
    return names


def _rank(producer: ir.Node) -> int:
    stored = producer.inputs[0]
    assert stored is not None
    tensor = ir.convenience.get_const_tensor(stored)
    assert tensor is not None
    return len(tensor.shape)
