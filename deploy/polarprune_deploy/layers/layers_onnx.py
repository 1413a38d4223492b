"""The layers of an ONNX file at one batch size, and which node or value belongs to which.

A layer is named for its weight: `layer1.0.conv1` where the weight is `layer1.0.conv1.weight`. The
weights keep the network's own names through collapse and export, so that a layer has one name in
the dense and in the pruned file.
"""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from polarprune.errors import ConfigError
from polarprune_deploy.layers.layer_times import Layer

if TYPE_CHECKING:
    import onnx

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Between a stored weight and the operator that uses it, in int8 and fp16 files.
_WEIGHT_CONVERSIONS = ("DequantizeLinear", "Cast", "Transpose", "QuantizeLinear")
ACTIVATIONS = frozenset(
    ["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Elu", "Gelu"]
)  # fmt: skip
# What a runtime computes together with the layer before it; one input decides.
_FOLLOWERS = ACTIVATIONS | {"QuantizeLinear", "DequantizeLinear", "Cast"}


@dataclass(frozen=True)
class OnnxLayers:
    """Layers in the order they run; `of_node` and `of_value` give the layer's name."""

    layers: tuple[Layer, ...]
    of_node: dict[str, str]
    of_value: dict[str, str]


def read_layers(model: "onnx.ModelProto", batch: int) -> OnnxLayers:
    """Count the layers of a model for a batch.

    Raises:
        ConfigError: shapes cannot be inferred, so that nothing can be counted.
    """
    shapes = infer_shapes(model, batch)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    layers: list[Layer] = []
    of_node: dict[str, str] = {}
    of_value: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in _WEIGHTED:
            weight = _stored_weight(node.input[1], stored, producers)
            if weight is None:
                continue
            name = _layer_name(weight.name, {layer.name for layer in layers}, node.name)
            layers.append(_layer(node, name, weight, shapes))
            of_node[node.name] = of_value[node.output[0]] = name
        elif node.op_type in _FOLLOWERS and node.input[0] in of_value:
            of_value[node.output[0]] = of_value[node.input[0]]
    return OnnxLayers(tuple(layers), of_node, of_value)


def infer_shapes(model: "onnx.ModelProto", batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all values where the free first side of every input is `batch`.

    Raises:
        ConfigError: the model contradicts itself.
    """
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    except Exception as error:  # its class is not exported
        words = " ".join(str(error).split())[:200]
        raise ConfigError(f"the shapes of the network cannot be inferred: {words}") from error
    graph = inferred.graph
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _stored_weight(name: str, stored: dict[str, Any], producers: dict[str, Any]) -> Any:
    while name not in stored:
        node = producers.get(name)
        if node is None or node.op_type not in _WEIGHT_CONVERSIONS:
            return None
        name = node.input[0]
    return stored[name]


def _layer_name(weight: str, taken: set[str], node: str) -> str:
    name = weight
    for ending in ("_quantized", "_float16", "_bfloat16", ".weight"):
        name = name.removesuffix(ending)
    return f"{name} ({node})" if name in taken else name  # a weight that two layers share


def _layer(node: Any, name: str, weight: Any, shapes: dict[str, tuple[int, ...]]) -> Layer:
    inputs, outputs = shapes[node.input[0]], shapes[node.output[0]]
    dims = tuple(weight.dims)
    itemsize = _itemsize(weight)
    moved = itemsize * (prod(inputs) + prod(outputs) + prod(dims))
    if node.op_type in ("Gemm", "MatMul"):
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        width = dims[1] if transposed else dims[0]
        macs = prod(outputs) * width
        return Layer(name, "linear", macs, moved, width, outputs[-1])
    attributes = {a.name: a for a in node.attribute}
    groups = attributes["group"].i if "group" in attributes else 1
    spatial = dims[2:]
    stride = tuple(attributes["strides"].ints) if "strides" in attributes else (1,) * len(spatial)
    channels_in, channels_out = inputs[1], outputs[1]
    if node.op_type == "Conv":
        macs = prod(outputs) * prod(spatial) * channels_in // groups
    else:
        macs = prod(inputs) * prod(spatial) * channels_out // groups
    return Layer(
        name, "convolution", macs, moved, channels_in, channels_out, groups, spatial, stride
    )


def _itemsize(weight: Any) -> int:
    from onnx import helper

    return int(helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize)
