"""Normalisation inside of the graph: decoded pixels in, so that a server needs no Python."""

from typing import TYPE_CHECKING

import numpy as np

from polarprune.errors import Refused
from polarprune.manifest import Preprocessing

if TYPE_CHECKING:
    import onnx


def embed_preprocessing(model: "onnx.ModelProto", preprocessing: Preprocessing) -> None:
    """Gives the graph, in place, the input (n, h, w, 3) of uint8 in place of (n, 3, h, w).

    The input keeps its name. What it computes is (pixels / 255 - mean) / std in float32, as one
    product and one difference a channel: a last bit may round otherwise. Source: ours.

    Raises:
        Refused: the network has another input than one image of three channels of float32.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    sizes = graph.input[0].type.tensor_type.shape.dim
    kind = graph.input[0].type.tensor_type.elem_type
    if len(graph.input) != 1 or kind != TensorProto.FLOAT or len(sizes) != 4:
        raise Refused("preprocessing can be embedded where the one input is float32 images only")
    batch, channels, height, width = (size.dim_param or size.dim_value for size in sizes)
    if channels != 3:
        raise Refused(f"preprocessing is for images of 3 channels, the network reads {channels}")
    name = graph.input[0].name
    image = f"{name}_normalised"
    for node in graph.node:
        node.input[:] = [image if read == name else read for read in node.input]
    std = np.asarray(preprocessing.std, np.float64)
    mean = np.asarray(preprocessing.mean, np.float64)
    constants = {
        "pixel_scale": (1 / (255 * std)).astype(np.float32),
        "pixel_offset": (mean / std).astype(np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    steps = [
        helper.make_node("Cast", [name], ["pixels"], name="pixel_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "pixel_scale"], ["scaled_pixels"], name="pixel_mul"),
        helper.make_node("Sub", ["scaled_pixels", "pixel_offset"], ["shifted"], name="pixel_sub"),
        helper.make_node("Transpose", ["shifted"], [image], name="to_nchw", perm=[0, 3, 1, 2]),
    ]
    rest = list(graph.node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*steps, *rest])
    graph.input[0].CopyFrom(
        helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, height, width, channels])
    )
