"""What a graph takes: operators, output channels, parameters, multiply-accumulates."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.constants import Constants
from polarprune_export.onnx_collapse.mixes import weight_matrix
from polarprune_export.onnx_collapse.operators import MIXING, attribute, kind_of
from polarprune_export.onnx_collapse.probing import Feeds, Probe


@dataclass(frozen=True)
class Counts:
    """`channels` are the outputs of all operators with weights, `macs` those of one image."""

    nodes: int
    channels: int
    params: int
    macs: int


def count_graph(model: ir.Model, probe: Probe, feeds: Feeds) -> Counts:
    """Counts at the probed size, for one image (the first side of the first input is the batch)."""
    constants = Constants(model)
    batch = next((a.shape[0] for a in feeds.values() if a.ndim), 1) or 1
    channels = macs = 0
    for node in model.graph:
        if kind_of(node) not in MIXING:
            continue
        macs += _macs(node, probe)
        channels += _channels(node, constants)
    return Counts(len(list(model.graph)), channels, count_params(model), macs // batch)


def _channels(node: ir.Node, constants: Constants) -> int:
    """Outputs of one operator, those of weights that may be fed too; 0 of computed ones."""
    value = node.inputs[1]
    weight = constants.array(value)
    if weight is None and value is not None and value.const_value is not None:
        weight = value.const_value.numpy()
    matrix = None if weight is None else weight_matrix(node, weight)
    return 0 if matrix is None else matrix.shape[0] * matrix.shape[1]


def count_params(model: ir.Model) -> int:
    """Elements of all stored tensors but those of sizes and indices (int64, int32, bool)."""
    stored = [value.const_value for value in model.graph.initializers.values()]
    for node in model.graph:
        if kind_of(node) == "Constant":
            stored.append(ir.convenience.get_const_tensor(node.outputs[0]))
    skipped = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING)
    return sum(
        int(np.prod(tensor.shape.numpy()))
        for tensor in stored
        if tensor is not None and tensor.dtype not in skipped
    )


def _macs(node: ir.Node, probe: Probe) -> int:
    """Of a whole batch; 0 where a shape is not known."""
    shapes = [probe.shapes.get(str(v.name)) if v is not None else None for v in node.inputs[:2]]
    result = probe.shapes.get(str(node.outputs[0].name))
    source, weight = shapes[0], shapes[1]
    if weight is None:
        given = node.inputs[1]
        tensor = None if given is None else ir.convenience.get_const_tensor(given)
        weight = None if tensor is None else tuple(tensor.shape.numpy())
    if source is None or result is None:
        return 0
    kind = kind_of(node)
    if kind == "MatMul":
        return int(np.prod(result)) * source[-1]
    if kind == "Gemm":
        return int(np.prod(result)) * source[0 if attribute(node, "transA", 0) else 1]
    if weight is None:
        return 0
    each = int(np.prod(weight[1:]))
    return int(np.prod(result if kind == "Conv" else source)) * each
