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

    Raises:
        BundleError: it has more than `LARGEST_TENSOR_BYTES`, or its size cannot be told.
    """
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(_skeleton(model), data_prop=True)
    except Exception as error:  # several unrelated classes, with those of the C++ inside
        words = " ".join(str(error).split())[:200]
        raise BundleError(f"{where}: its shapes make no sense ({words}); export again") from None
    graph = inferred.graph
    sizes = {value.name: _bytes(value) for value in (*graph.value_info, *graph.output)}
    largest = 0
    for node in graph.node:
        for name in node.output:
            size = sizes.get(name)
            if size is None and node.op_type in SIZED_BY_VALUES and name:
                raise BundleError(
                    f"{where}: {node.op_type} {quote(node.name)} makes a tensor whose size cannot "
                    "be told before it runs; export again"
                )
            if size is not None and size > LARGEST_TENSOR_BYTES:
                raise BundleError(
                    f"{where}: {node.op_type} {quote(node.name)} makes a tensor of {size} bytes "
                    f"for one image, at most {LARGEST_TENSOR_BYTES} are allowed"
                )
            largest = max(largest, size or 0)
    return largest


def _skeleton(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph with a batch of one, without its large weights and without stated shapes."""
    import onnx
    from onnx import helper

    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    skeleton.functions.extend(model.functions)
    graph = skeleton.graph
    graph.name = "skeleton"
    graph.node.extend(model.graph.node)
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
    for value in model.graph.output:
        graph.output.append(value)
        graph.output[-1].type.tensor_type.ClearField("shape")
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
