"""Normalisation inside of the graph: decoded pixels in, so that a server needs no Python."""

from typing import TYPE_CHECKING

import numpy as np

from polarprune.errors import Refused
from polarprune.manifest import Preprocessing
from polarprune_export.onnx_cleaning import free_name
from polarprune_export.onnx_session import Array

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
        raise Refused(
            "--embed-preprocess is for networks with one input, float32 images; leave it out"
        )
    batch, channels, height, width = (size.dim_param or size.dim_value for size in sizes)
    if channels != 3:
        raise Refused(
            f"--embed-preprocess is for images of 3 channels, the network reads {channels}; leave "
            "it out"
        )
    name = graph.input[0].name
    taken = {t.name for t in graph.initializer} | {n for node in graph.node for n in node.output}
    taken |= {name}
    image = free_name(f"{name}_normalised", taken)
    for node in graph.node:
        node.input[:] = [image if read == name else read for read in node.input]
    std = np.asarray(preprocessing.std, np.float64)
    mean = np.asarray(preprocessing.mean, np.float64)
    steps: list[tuple[str, str, Array | None]] = [("Cast", "pixels", None)]
    scale, offset = (1 / (255 * std)).astype(np.float32), (mean / std).astype(np.float32)
    if (scale != 1).any():  # of 0..255 networks it is 1, and the lint takes that for a mask
        steps.append(("Mul", "pixel_scale", scale))
    if offset.any():
        steps.append(("Sub", "pixel_offset", offset))
    nodes, last = [], name
    for kind, words, constant in steps:
        result = free_name(f"{words}_applied", taken)
        if constant is None:
            nodes.append(helper.make_node(kind, [last], [result], to=TensorProto.FLOAT))
        else:
            held = free_name(words, taken)
            graph.initializer.append(numpy_helper.from_array(constant, held))
            nodes.append(helper.make_node(kind, [last, held], [result]))
        last = result
    nodes.append(helper.make_node("Transpose", [last], [image], perm=[0, 3, 1, 2]))
    rest = list(graph.node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*nodes, *rest])
    graph.input[0].CopyFrom(
        helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, height, width, channels])
    )
