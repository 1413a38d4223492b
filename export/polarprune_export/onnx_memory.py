"""How much memory a graph takes for one image, from shape inference, before anything is allocated.

A file of 200 bytes can ask for a tensor of 10 GB, and ONNX Runtime computes what is constant when a
session is opened. Weights take no part in the inference: each stands there as an input of its type
and shape, unless it is small enough to be a shape itself.
"""

import math
from typing import TYPE_CHECKING

from polarprune.errors import BundleError, quote

if TYPE_CHECKING:
    import onnx

LARGEST_TENSOR_BYTES = 1 << 30
"""For one image."""
SHAPE_ELEMENTS = 1 << 10
"""The most that a weight has which is kept for the inference: sizes and scales are among those."""

MOST_INFERENCES = 1 << 21
"""Nodes times waves; Swin-T has 440 nodes and 24 waves."""

# These take the size of their result from the values of an input; where the inference does not
# know it, nobody does.
SIZED_BY_VALUES = {
    *("CenterCropPad", "Col2Im", "ConstantOfShape", "Expand", "EyeLike", "Multinomial", "OneHot"),
    *("Pad", "RandomNormal", "RandomUniform", "Range", "Resize", "Tile", "Upsample"),
    *("DFT", "STFT", "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"),
    *("AffineGrid", "ConvTranspose", "MaxUnpool", "SequenceInsert", "ConcatFromSequence"),
}


def largest_tensor(model: "onnx.ModelProto", where: str) -> int:
    """Bytes of the largest tensor that the graph computes for one image.

    Args:
        model: with its nodes in order.

    Raises:
        BundleError: it has more than `LARGEST_TENSOR_BYTES`, or a side below zero, or its size
            cannot be told.
    """
    values = _infer(model, where)
    largest = 0
    for node in model.graph.node:
        words = f"{where}: {node.op_type} {quote(node.name)} makes a tensor"
        for name in filter(None, node.output):
            size = _bytes(values[name]) if name in values else None
            if size is None and node.op_type in SIZED_BY_VALUES:
                raise BundleError(f"{words} whose size cannot be told before it runs; export again")
            if size is not None and size > LARGEST_TENSOR_BYTES:
                raise BundleError(
                    f"{words} of {size} bytes for one image, at most {LARGEST_TENSOR_BYTES} are "
                    "allowed; export again"
                )
            largest = max(largest, size or 0)
    return largest


def _infer(model: "onnx.ModelProto", where: str) -> "dict[str, onnx.ValueInfoProto]":
    """The types of all values, as far as they can be told.

    The inference of onnx 1.23 aborts the process at a Slice of a negative side, which a kernel
    larger than its image makes. So it sees no Slice before the sides in front of it are known.
    """
    import onnx

    depths = _slice_depths(model)
    waves = 1 + max(depths, default=0)
    if waves * len(depths) > MOST_INFERENCES:
        raise BundleError(f"{where}: {waves} Slice operators in a row; export again")
    skeleton = _skeleton(model)
    values: dict[str, onnx.ValueInfoProto] = {}
    for wave in range(waves):
        del skeleton.graph.node[:]
        skeleton.graph.node.extend(
            node for node, depth in zip(model.graph.node, depths, strict=True) if depth <= wave
        )
        try:
            inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
        except Exception as error:  # several unrelated classes, with those of the C++ inside
            words = " ".join(str(error).split())[:200]
            raise BundleError(
                f"{where}: its shapes make no sense ({words}); export again"
            ) from None
        values = {value.name: value for value in inferred.graph.value_info}
        for value in values.values():
            for side in value.type.tensor_type.shape.dim:
                if side.dim_value < 0:
                    raise BundleError(
                        f"{where}: {quote(value.name)} has a side of {side.dim_value}; export again"
                    )
    return values


def _slice_depths(model: "onnx.ModelProto") -> list[int]:
    """Of each node, the most Slice operators on a way to it, itself included."""
    depth_of: dict[str, int] = {}
    depths = []
    for node in model.graph.node:
        depth = max((depth_of.get(name, 0) for name in node.input), default=0)
        depth += node.op_type == "Slice"
        depths.append(depth)
        depth_of.update(dict.fromkeys(node.output, depth))
    return depths


def _skeleton(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph without nodes: a batch of one, no large weights, no outputs or stated shapes."""
    import onnx
    from onnx import helper

    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    skeleton.functions.extend(model.functions)
    graph = skeleton.graph
    graph.name = "skeleton"
    stated = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in stated:
            graph.input.append(value)
            for side in graph.input[-1].type.tensor_type.shape.dim:
                if not side.HasField("dim_value"):
                    side.dim_value = 1
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SHAPE_ELEMENTS:
            graph.initializer.append(tensor)
        else:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return skeleton


def _bytes(value: "onnx.ValueInfoProto") -> int | None:
    """Of a tensor with all sides known, else None."""
    from onnx import helper

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        return None
    sides = [side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim]
    if any(side < 0 for side in sides):
        return None
    try:
        width = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    except (KeyError, TypeError, ValueError):
        width = 8
    return math.prod(sides) * width
