"""Element-wise operators: what meets is tied, and constants are computed by the operator itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.constants import per_position
from polarprune_export.onnx_collapse.labels import ConstantUse, Ids, Known
from polarprune_export.onnx_collapse.operators import kind_of
from polarprune_export.onnx_collapse.single_nodes import run_node
from polarprune_export.onnx_session import Array

if TYPE_CHECKING:
    from polarprune_export.onnx_collapse.analysis import Analysis


@dataclass(frozen=True)
class _Operand:
    """One input: labels and positions where it has any along the axis, and what is known."""

    labels: Ids | None
    positions: Ids | None
    known: Known
    scalar: Array | None = None


def combine(analysis: "Analysis", node: ir.Node) -> bool:
    """Case 1: one tensor. Case 2: several; one of size 1 along the axis is broadcast, untied.

    Refused: operands whose channels lie along different axes, and outputs beside the first.
    """
    result = node.outputs[0]
    shape = analysis.shape(result)
    if shape is None or any(value.uses() for value in node.outputs[1:]) or _trains(analysis, node):
        return False
    if kind_of(node) in ("QuantizeLinear", "DequantizeLinear"):
        parameters = [analysis.constants.array(value) for value in node.inputs[1:] if value]
        if any(array is None or array.size != 1 for array in parameters):
            return False
    axes = set()
    for value in node.inputs:
        if value in analysis.spreads:
            own = analysis.shape(value)
            assert own is not None
            axes.add(analysis.spreads[value].axis + len(shape) - len(own))
    if not axes:
        return True  # nothing to tell apart, nothing to pin
    if len(axes) > 1:
        return False
    axis = axes.pop()
    operands = [_operand(analysis, node, i, axis, shape) for i in range(len(node.inputs))]
    if any(operand is None for operand in operands):
        return False
    given = [operand for operand in operands if operand is not None]
    tied = [operand.labels for operand in given if operand.labels is not None]
    if not tied:
        return False
    for labels in tied[1:]:
        analysis.labels.tie(tied[0], labels)
    dtypes = [_dtype(analysis, value) for value in node.inputs]
    known = _known(analysis, node, given, dtypes, shape[axis])
    if not analysis.put(result, axis, tied[0], known):
        return False
    outputs = analysis.spreads[result].positions
    for operand in given:
        if operand.positions is not None:
            analysis.flow(node, outputs, operand.positions)
    return True


def _trains(analysis: "Analysis", node: ir.Node) -> bool:
    """A Dropout that draws at random."""
    if kind_of(node) != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    mode = analysis.constants.array(node.inputs[2])
    return mode is None or bool(mode.any())


def _dtype(analysis: "Analysis", value: ir.Value | None) -> "np.dtype[np.generic] | None":
    if value is None:
        return None
    array = analysis.constants.array(value)
    return analysis.probe.dtypes.get(str(value.name)) if array is None else array.dtype


def _operand(
    analysis: "Analysis", node: ir.Node, index: int, axis: int, shape: tuple[int, ...]
) -> _Operand | None:
    value = node.inputs[index]
    size = shape[axis]
    unknown = np.full(size, np.nan)
    if value is None:
        return _Operand(None, None, np.zeros(size), np.zeros(0))  # stands for "not given"
    array = analysis.constants.array(value)
    if array is not None:
        return _constant(analysis, node, index, axis + array.ndim - len(shape), size, array)
    given = analysis.shape(value)
    if given is None:
        return None
    own = axis + len(given) - len(shape)
    if own < 0 or (given[own] == 1 and size > 1):
        # Broadcast over space is harmless; one channel that all others meet has to stay.
        analysis.read_all(value)
        found = analysis.spreads.get(value)
        known = unknown if found is None else np.full(size, found.known[0])
        return _Operand(None, None, known)
    spread = analysis.along(value, own)
    return None if spread is None else _Operand(spread.labels, spread.positions, spread.known)


def _constant(
    analysis: "Analysis", node: ir.Node, index: int, own: int, size: int, array: Array
) -> _Operand:
    if array.size == 1:
        number = float(array.reshape(-1)[0])
        return _Operand(None, None, np.full(size, number), array)
    if own < 0 or array.shape[own] == 1:
        flat = per_position(array.reshape(1, -1), 0)
        return _Operand(None, None, np.full(size, flat[0]))
    labels = analysis.labels.new(size)
    analysis.constant_uses.append(ConstantUse(node, index, own, labels))
    return _Operand(labels, None, per_position(array, own))


def _known(
    analysis: "Analysis",
    node: ir.Node,
    operands: list[_Operand],
    dtypes: "list[np.dtype[np.generic] | None]",
    size: int,
) -> Known:
    """Per position what comes out, computed where all that goes in is known."""
    known = np.full(size, np.nan)
    here = ~np.isnan(np.stack([operand.known for operand in operands])).any(axis=0)
    if here.any() and not any(d is None and v for d, v in zip(dtypes, node.inputs, strict=True)):
        arrays: list[Array | None] = []
        for operand, dtype, value in zip(operands, dtypes, node.inputs, strict=True):
            if value is None:
                arrays.append(None)
            elif operand.scalar is not None and kind_of(node) != "PRelu":
                arrays.append(operand.scalar.reshape(()))
            else:
                arrays.append(operand.known[here].astype(dtype))
        results = run_node(node, arrays, analysis.constants.opsets)
        if results is not None and results[0].shape == (int(here.sum()),):
            known[here] = results[0].astype(np.float64)
    if kind_of(node) == "Mul":
        for operand in operands:
            known[operand.known == 0] = 0.0  # what it meets is taken to be finite
    return known
