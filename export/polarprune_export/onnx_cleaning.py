"""An exported graph made canonical: the same network gives the same bytes, in any process.

The exporter leaves the source paths of the exporting machine in node metadata and numbers that
count everything it ever exported in node names. Both are replaced here.
"""

import re
from typing import TYPE_CHECKING

import numpy as np

from polarprune.optional_packages import import_package
from polarprune_export.onnx_session import open_session, run_session

if TYPE_CHECKING:
    import onnx

SIMPLIFIER_TOLERANCE = 1e-5
"""Of the largest output: the simplifier may only fold constants, which rounds a last bit or two."""


def strip_metadata(model: "onnx.ModelProto") -> None:
    """Removes what describes the exporting machine, in place; no operator reads any of it."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.initializer, *graph.value_info):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.ClearField("doc_string")
    graph.ClearField("quantization_annotation")


def name_canonically(model: "onnx.ModelProto", parameters: set[str]) -> None:
    """Names nodes and values by operator and position, in place.

    Inputs, outputs and the network's own parameters keep their names. A graph with control flow is
    left as it is (its subgraphs read outer names), and the lint refuses it.
    """
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return
    kept = {value.name for value in (*graph.input, *graph.output)}
    names = {name: name for name in kept}
    taken = kept | parameters
    for i, tensor in enumerate(graph.initializer):
        if tensor.name not in names:
            keep = tensor.name in parameters
            names[tensor.name] = tensor.name if keep else free_name(f"constant_{i}", taken)
    counts: dict[str, int] = {}
    for node in graph.node:
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", node.op_type).lower()
        position = counts[kind] = counts.get(kind, -1) + 1
        node.name = f"{kind}_{position}"
        for i, output in enumerate(node.output):
            if output and output not in names:
                suffix = f"_{i}" if i else ""
                names[output] = free_name(f"{node.name}_output{suffix}", taken)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)
    graph.value_info.sort(key=lambda value: value.name)
    graph.initializer.sort(key=lambda tensor: tensor.name)
    graph.name = "polarprune"


def simplify(model: "onnx.ModelProto") -> "onnx.ModelProto | None":
    """The model after `onnxsim`, or None where it changed nothing or changed the outputs.

    Raises:
        BackendUnavailable: onnxsim, or ONNX Runtime, which does the comparing, is not installed.
    """
    onnxsim = import_package("onnxsim", "pip install onnxsim")
    simplified: onnx.ModelProto = onnxsim.simplify(model)[0]
    if len(simplified.graph.node) >= len(model.graph.node):
        return None
    before = open_session(model.SerializeToString(), threads=1)
    after = open_session(simplified.SerializeToString(), threads=1)
    shape = [size if isinstance(size, int) else 2 for size in before.get_inputs()[0].shape]
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    pairs = zip(
        run_session(before, images, chunk=2), run_session(after, images, chunk=2), strict=True
    )
    for old, new in pairs:
        if not np.abs(new - old).max() <= SIMPLIFIER_TOLERANCE * np.abs(old).max():
            return None
    return simplified


def free_name(name: str, taken: set[str]) -> str:
    """The name, with underscores behind it where it is taken; it is taken then."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
