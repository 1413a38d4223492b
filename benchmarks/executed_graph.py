"""What ONNX Runtime's CPU provider makes of a network before it runs it.

On x86 it keeps images in blocks of channels (NCHWc: 16 wide with AVX-512, 8 with AVX2) and fills
the last block with zeros, which are multiplied as well. A convolution whose input channels are no
multiple of 4 is left out of that, and is a matrix product in the plain layout, between reorderings.
"""

import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

BLOCKED_DOMAIN = "com.microsoft.nchwc"
CONVOLUTIONS = ("Conv", "FusedConv")


@dataclass(frozen=True)
class ExecutedGraph:
    """Counts of operators, and MACs of one image with the zeros that fill up blocks."""

    convolutions: int
    blocked_convolutions: int
    reorders: int
    operators: int
    macs: int

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


def read_executed(path: Path) -> ExecutedGraph:
    """The optimised graph of an ONNX file, counted.

    Args:
        path: a file as `write_onnx` leaves it: one input of a fixed image size.
    """
    plain = onnx.load(path)
    sizes = _output_sizes(plain)
    nodes, weights = _optimised(path)
    convolutions = [node for node in nodes if node.op_type in CONVOLUTIONS]
    macs = sum(math.prod(weights[node.input[1]]) * sizes[_wrote(node)] for node in convolutions)
    # Linear layers have no blocks.
    macs += sum(math.prod(weights[node.input[1]]) for node in nodes if node.op_type == "Gemm")
    return ExecutedGraph(
        convolutions=len(convolutions),
        blocked_convolutions=sum(node.domain == BLOCKED_DOMAIN for node in convolutions),
        reorders=sum(node.op_type in ("ReorderInput", "ReorderOutput") for node in nodes),
        operators=len(nodes),
        macs=macs,
    )


def _wrote(node: Any) -> str:
    """The value in the file that a convolution writes: in blocks it bears another name."""
    if node.domain == BLOCKED_DOMAIN:
        return str(node.name).removesuffix("_nchwc")
    return str(node.output[0])


def _output_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Pixels of every image-shaped value."""
    inferred = onnx.shape_inference.infer_shapes(model)
    sizes = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        shape = value.type.tensor_type.shape.dim
        if len(shape) == 4:
            sizes[value.name] = shape[2].dim_value * shape[3].dim_value
    return sizes


def _optimised(path: Path) -> tuple[list[Any], dict[str, list[int]]]:
    """The nodes that run, and the shapes of their weights, zeros included."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(written)
        options.log_severity_level = 3  # it warns that the file is for this machine alone
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(written).graph
    return list(graph.node), {tensor.name: list(tensor.dims) for tensor in graph.initializer}
