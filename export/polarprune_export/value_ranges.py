"""How large the values inside of a network become, on given images."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from polarprune_export.onnx_session import Array, open_session

if TYPE_CHECKING:
    import onnx


def largest_values(model: "onnx.ModelProto", batches: Iterable[Array]) -> dict[str, float]:
    """Largest magnitude of each float32 value that a node writes, in ONNX Runtime.

    Args:
        batches: images as the network takes them, (n, ...); a value that is not finite counts as
            infinite.
    """
    from onnx import ModelProto, TensorProto, helper, shape_inference

    seen = ModelProto()
    seen.CopyFrom(model)
    graph = seen.graph
    inferred = shape_inference.infer_shapes(model).graph
    floats = [
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    del graph.output[:]
    for name in floats:  # a number each: the values themselves may not fit into memory together
        graph.node.append(helper.make_node("Abs", [name], [f"{name}_magnitude"]))
        graph.node.append(
            helper.make_node("ReduceMax", [f"{name}_magnitude"], [f"{name}_largest"], keepdims=0)
        )
        graph.output.append(helper.make_tensor_value_info(f"{name}_largest", TensorProto.FLOAT, []))
    session = open_session(seen.SerializeToString())
    found = dict.fromkeys(floats, 0.0)
    for images in batches:
        outputs = session.run(None, {session.get_inputs()[0].name: images})
        for name, value in zip(floats, outputs, strict=True):
            largest = float(value)
            found[name] = max(found[name], largest if np.isfinite(largest) else np.inf)
    return found


def nodes_above(
    model: "onnx.ModelProto", largest: dict[str, float], limit: float
) -> tuple[str, ...]:
    """Names of the nodes that read or write a value above the limit."""
    return tuple(
        node.name
        for node in model.graph.node
        if any(largest.get(name, 0.0) > limit for name in (*node.input, *node.output))
    )
