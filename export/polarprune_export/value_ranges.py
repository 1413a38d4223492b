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
    known = {value.name for value in graph.output}
    for value in inferred.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in known:
            graph.output.append(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, None))
    session = open_session(seen.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    found = dict.fromkeys(names, 0.0)
    for images in batches:
        outputs = session.run(names, {session.get_inputs()[0].name: images})
        for name, value in zip(names, outputs, strict=True):
            largest = float(np.abs(value).max(initial=0.0))
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
