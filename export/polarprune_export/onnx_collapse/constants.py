"""The values that do not depend on any input: initializers, and what is computed from them."""

from typing import Any

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.operators import FOLDABLE, QUANTISED, kind_of, opsets_of
from polarprune_export.onnx_collapse.single_nodes import run_node
from polarprune_export.onnx_session import Array

FIRST_IR_WITH_DEFAULTS = 4
"""Before it every initializer had to be a graph input too; from it on such an input may be fed."""
LARGEST_COMPUTED = 1 << 27


class Constants:
    """Arrays of constant values, computed when first asked for."""

    def __init__(self, model: ir.Model) -> None:
        self.opsets = opsets_of(model)
        self._fed = set(model.graph.inputs) if model.ir_version >= FIRST_IR_WITH_DEFAULTS else set()
        self._found: dict[ir.Value, Array | None] = {}

    def array(self, value: ir.Value | None) -> Array | None:
        """The value's array, None where it depends on an input or is not given."""
        if value is None:
            return None
        if value not in self._found:
            self._found[value] = None  # while it is looked for
            self._found[value] = self._look(value)
        return self._found[value]

    def _look(self, value: ir.Value) -> Array | None:
        if value.is_initializer():
            tensor = value.const_value
            plain = value not in self._fed and tensor is not None
            return None if not plain else _numbers(tensor)
        node = value.producer()
        if node is None:
            return None
        if kind_of(node) == "Constant":
            return _numbers(ir.convenience.get_const_tensor(value))
        if kind_of(node) not in FOLDABLE or not node.inputs:
            return None
        arrays = [self.array(given) for given in node.inputs]
        for given, array in zip(node.inputs, arrays, strict=True):
            if given is not None and array is None:
                return None
        if sum(a.size for a in arrays if a is not None) > LARGEST_COMPUTED:
            return None
        results = run_node(node, arrays, self.opsets)
        outputs = [output for output in node.outputs if output.name]
        return None if results is None else results[outputs.index(value)]

    def quantised(self, value: ir.Value) -> bool:
        """Whether a constant is stored in whole numbers, behind a DequantizeLinear."""
        node = value.producer()
        return node is not None and kind_of(node) == "DequantizeLinear"


def not_looked_into(model: ir.Model) -> list[str]:
    """Why weights that are stored in the file are no constants here, or none that are followed."""
    found, graph = [], model.graph
    fed = 0
    if model.ir_version >= FIRST_IR_WITH_DEFAULTS:
        fed = sum(value.is_initializer() and bool(value.uses()) for value in graph.inputs)
    if fed:
        words = "1 weight is a graph input" if fed == 1 else f"{fed} weights are graph inputs"
        found.append(f"{words} and may be fed; take them off the inputs to collapse")
    kinds = sorted({node.op_type for node in graph if node.op_type in QUANTISED})
    if kinds:
        found.append(
            f"{', '.join(kinds)} compute with whole numbers; "
            "write the file with QuantizeLinear and DequantizeLinear (QDQ) to collapse"
        )
    return found


def _numbers(tensor: Any) -> Array | None:
    if tensor is None or isinstance(tensor, ir.StringTensor):
        return None
    array: Array = tensor.numpy()
    return array


def per_position(array: Array, axis: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """(n,): along the axis the one number that a slice holds, NaN where it holds several."""
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
    if rows.shape[1] == 0:
        return np.full(len(rows), np.nan)
    found = np.where((rows == rows[:, :1]).all(axis=1), rows[:, 0], np.nan)
    return np.where(np.isfinite(found), found, np.nan)
