"""A float32 graph in float16 or bfloat16, operator by operator: precision lives in the graph.

TensorRT 11 and TensorRT-RTX are strongly typed: what an operator computes in is what its inputs
are. Inputs and outputs of the graph stay as they are, and a Cast stands where precisions meet.
Where a number does not fit (float16 ends at 65,504) the operator stays in float32. Source: ours;
ONNX Runtime's converter does the same for float16 only.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from polarprune_export.onnx_session import Array

if TYPE_CHECKING:
    import onnx

LOW_TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
OPSETS = {"fp16": 20, "bf16": 22}
"""From opset 22 on Conv and the pools have bfloat16; TensorRT 11 reads up to 25."""
LARGEST = {"fp16": 65_504.0, "bf16": 3.3895313892515355e38}
SMALLEST = {"fp16": 2.0**-14, "bf16": 2.0**-126}
"""Below these numbers lose digits, and end at 0."""
_MIXING = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# What a small constant (an epsilon) goes through until it is divided by.
_CARRYING = {
    *("Add", "Max", "Clip", "Sqrt", "Pow", "Reciprocal", "Expand", "Reshape", "Unsqueeze"),
    *("Transpose", "ReduceSum", "ReduceL2"),
}
_DIVIDING = {"Div", "Mul"}
# TensorRT-RTX 1.7 builds no bfloat16 one.
_LACKING = {"fp16": set[str](), "bf16": {"ConvTranspose"}}


def lower_to_half(
    model: "onnx.ModelProto", precision: str, keep: Collection[str] = ()
) -> tuple[str, ...]:
    """Changes a float32 graph in place; weights are rounded to nearest.

    Args:
        model: without control flow (the lint has seen it), of opset `OPSETS[precision]`.
        precision: "fp16" or "bf16".
        keep: names of nodes that stay in float32.

    Returns:
        Names of the nodes that stayed in float32: those, and whatever ONNX has no such form of or
        whose constants do not fit: too large, or so small (an epsilon) that they would become 0,
        and what divides by these.
    """
    low = _Lowering(model, precision)
    small = low.behind_small_constants()
    kept = {
        node.name
        for node in model.graph.node
        if node.name in keep or node.name in small or not low.fits(node)
    }
    low.rewrite(kept)
    return tuple(node.name for node in low.computing if node.name in kept)


class _Lowering:
    def __init__(self, model: "onnx.ModelProto", precision: str) -> None:
        from onnx import helper

        self.graph = model.graph
        self.opset = next(entry.version for entry in model.opset_import if entry.domain == "")
        self.dtype, self.largest = LOW_TYPES[precision], LARGEST[precision]
        self.low_type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.word = f"tensor({'float16' if precision == 'fp16' else 'bfloat16'})"
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.floats = _float_values(model)
        self.lacking, self.smallest = _LACKING[precision], SMALLEST[precision]
        self.computing = [node for node in self.graph.node if self._computes(node)]

    def _computes(self, node: "onnx.NodeProto") -> bool:
        """Whether there is anything of float32 in it; a Cast is none of either precision."""
        names = (*node.input, *node.output)
        return node.op_type != "Cast" and any(name in self.floats for name in names)

    def behind_small_constants(self) -> set[str]:
        """Names of nodes with a constant that would lose its digits, and of what divides by it."""
        found: set[str] = set()
        small: set[str] = set()
        for node in self.graph.node:
            held = any(self._is_small(name) for name in node.input) and node.op_type not in _MIXING
            carried = any(name in small for name in node.input)
            if held or (carried and node.op_type in _CARRYING | _DIVIDING):
                found.add(node.name)
                if node.op_type in _CARRYING:
                    small.update(node.output)
        return found

    def _is_small(self, name: str) -> bool:
        if name not in self.weights or name not in self.floats:
            return False
        size = np.abs(_values(self.weights[name]))
        return bool(((size > 0) & (size < self.smallest)).any())

    def fits(self, node: "onnx.NodeProto") -> bool:
        """Whether the operator exists in low precision and all its constants are numbers there."""
        if node.op_type in {"Cast", "Constant"} or node.domain not in {"", "ai.onnx"}:
            return False
        if node.op_type in self.lacking or not self._follows_its_inputs(node):
            return False
        ports = [*self._ports(node, inputs=True), *self._ports(node, inputs=False)]
        ports = [(name, allowed) for name, allowed in ports if name in self.floats]
        lowered = [name for name, allowed in ports if self.word in allowed]
        # A port that is float32 in any case (the scales of a Resize) is no obstacle.
        obstacles = [name for name, kinds in ports if self.word not in kinds and len(kinds) > 1]
        return bool(lowered) and not obstacles and all(map(self._fits_constant, lowered))

    def _follows_its_inputs(self, node: "onnx.NodeProto") -> bool:
        """False where an attribute decides what is written (ConstantOfShape, EyeLike, ...)."""
        from onnx import defs

        schema = defs.get_schema(node.op_type, self.opset, node.domain)
        return {port.type_str for port in schema.outputs if self.word in port.types} <= {
            port.type_str for port in schema.inputs
        }

    def _fits_constant(self, name: str) -> bool:
        if name not in self.weights:
            return True
        return bool(np.abs(_values(self.weights[name])).max(initial=0.0) <= self.largest)

    def _ports(
        self, node: "onnx.NodeProto", *, inputs: bool
    ) -> Iterator[tuple[str, Collection[str]]]:
        """Each value that a node reads or writes, with the types that its schema allows there."""
        from onnx import defs

        schema = defs.get_schema(node.op_type, self.opset, node.domain)
        formal = list(schema.inputs if inputs else schema.outputs)
        for i, name in enumerate(node.input if inputs else node.output):
            port = formal[min(i, len(formal) - 1)]  # the last may be repeated
            yield name, port.types

    def rewrite(self, kept: set[str]) -> None:
        """Casts where a node reads another precision than the one in which a value is made."""
        from onnx import numpy_helper

        made_low = {
            name
            for node in self.graph.node
            if node.name not in kept
            for name, allowed in self._ports(node, inputs=False)
            if name in self.floats and self.word in allowed
        }
        outputs = {value.name for value in self.graph.output}
        casts: dict[tuple[str, bool], str] = {}
        nodes: list[onnx.NodeProto] = []
        low_weights: dict[str, onnx.TensorProto] = {}
        high_weights: set[str] = set()

        def read(name: str, low: bool) -> str:
            if name not in self.floats:
                return name
            if name in self.weights:
                if not low:
                    high_weights.add(name)
                    return name
                if name not in low_weights:
                    values = _values(self.weights[name]).astype(self.dtype)
                    low_weights[name] = numpy_helper.from_array(values, f"{name}_{self._suffix}")
                return low_weights[name].name
            if (name in made_low) == low:
                return stored(name)
            if (name, low) not in casts:
                casts[name, low] = f"{name}_{self._suffix if low else 'float'}"
                nodes.append(self._cast(stored(name), casts[name, low], low))
            return casts[name, low]

        def stored(name: str) -> str:
            return f"{name}_{self._suffix}" if name in outputs and name in made_low else name

        for node in list(self.graph.node):
            low = node.name not in kept
            wanted = [low and self.word in kinds for _, kinds in self._inputs_of(node)]
            node.input[:] = [read(name, w) for name, w in zip(node.input, wanted, strict=True)]
            nodes.append(node)
            for i, name in enumerate(node.output):
                node.output[i] = stored(name)
                if stored(name) != name:  # an output of the graph keeps its type
                    nodes.append(self._cast(stored(name), name, low=False))
        used = [tensor for tensor in self.graph.initializer if self._stays(tensor, high_weights)]
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend([*used, *low_weights.values()])
        self._state_types({stored(name) for name in made_low} - outputs)

    def _state_types(self, low: set[str]) -> None:
        """Shape inference has no rule for some operators in low precision (GroupNormalization)."""
        from onnx import TensorProto, helper

        ends = {value.name for value in (*self.graph.input, *self.graph.output)}
        for node in self.graph.node:
            for name in node.output:
                if name in low or (name in self.floats and name not in ends):
                    kind = self.low_type if name in low else TensorProto.FLOAT
                    self.graph.value_info.append(helper.make_tensor_value_info(name, kind, None))

    @property
    def _suffix(self) -> str:
        return str(self.dtype.name)

    def _inputs_of(self, node: "onnx.NodeProto") -> list[tuple[str, Collection[str]]]:
        if node.domain not in {"", "ai.onnx"}:
            return [(name, ()) for name in node.input]
        return list(self._ports(node, inputs=True))

    def _stays(self, tensor: "onnx.TensorProto", high: set[str]) -> bool:
        return tensor.name not in self.floats or tensor.name in high

    def _cast(self, source: str, name: str, low: bool) -> "onnx.NodeProto":
        from onnx import TensorProto, helper

        kind = self.low_type if low else TensorProto.FLOAT
        return helper.make_node("Cast", [source], [name], name=f"cast_to_{name}", to=kind)


def _float_values(model: "onnx.ModelProto") -> set[str]:
    """Names of all float32 values."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            found.add(value.name)
    return found


def _values(tensor: Any) -> Array:
    from onnx import numpy_helper

    values: Array = numpy_helper.to_array(tensor)
    return values
