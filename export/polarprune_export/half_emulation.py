"""A float16 or bfloat16 graph as one that a CPU computes: in float32, rounded after each operator.

ONNX Runtime's CPU provider has no bfloat16 convolution, and float16 it computes in float32 without
rounding in between, so that what overflows on a GPU would pass there. Here each operator reads and
writes numbers that the low precision has; inside of one it is float32, as in tensor cores. Source:
ours. A GPU may round in other places: a fused operator rounds less often.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

# What these write they have read, so it is rounded already.
_ROUNDED_ALREADY = {
    *("Relu", "MaxPool", "GlobalMaxPool", "Reshape", "Flatten", "Transpose", "Concat", "Slice"),
    *("Split", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "Expand", "Identity"),
    *("Gather", "Max", "Min", "Neg", "Abs"),
}


def emulate_half(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same network for ONNX Runtime's CPU provider; a float32 graph comes back as it is."""
    from onnx import ModelProto, TensorProto, helper, numpy_helper

    low = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    emulated = ModelProto()
    emulated.CopyFrom(model)
    graph = emulated.graph
    kinds = _kinds(model)
    for i, tensor in enumerate(graph.initializer):
        if tensor.data_type in low:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            graph.initializer[i].CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in low:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    nodes: list[Any] = []
    for node in list(graph.node):
        if node.op_type == "Cast" and node.attribute[0].i in low:
            node.attribute[0].i = TensorProto.FLOAT
        nodes.append(node)
        if node.op_type in _ROUNDED_ALREADY:
            continue
        for j, name in enumerate(node.output):
            kind = kinds.get(name)
            if kind in low:
                exact, rounded = f"{name}_exact", f"{name}_rounded"
                node.output[j] = exact
                nodes.append(helper.make_node("Cast", [exact], [rounded], to=kind))
                nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    return emulated


def _kinds(model: "onnx.ModelProto") -> dict[str, int]:
    """Element type of each value."""
    import onnx

    # Not strict: where it has no rule, the types stand in the graph (`half_precision.py`).
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {value.name: value.type.tensor_type.elem_type for value in values}
