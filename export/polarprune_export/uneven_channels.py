"""Convolutions that ONNX Runtime keeps out of its fast layout on a CPU, for their channel counts.

On x86 its CPU provider keeps images in blocks of channels and fills the last block with zeros, but
only of counts that are multiples of 4. What else there is becomes a matrix product in the plain
layout, with reorderings around it: a ResNet-50 of half of the MACs was 1.34 times as fast as dense
with 44 of its 53 convolutions there, and 1.75 times with none (benchmarks/resnet50_cuts.py).
"""

from dataclasses import dataclass
from pathlib import Path

MULTIPLE = 4
FIRST_BLOCKED = 16
"""Fewer input channels (images have 1 or 3) are read as they are: they are less than a block."""


@dataclass(frozen=True)
class UnevenChannels:
    """`uneven` of `convolutions` stay outside."""

    uneven: int
    convolutions: int


def count_uneven(path: Path) -> UnevenChannels:
    """Counts the convolutions of a float32 ONNX file.

    Source: `NchwcTransformerImpl::TransformConv` of ONNX Runtime, held against its optimised graph
    by a test. Grouped convolutions that are not depthwise are not counted as uneven.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes = [weights.get(node.input[1], ()) for node in graph.node if node.op_type == "Conv"]
    groups = [_groups_of(node) for node in graph.node if node.op_type == "Conv"]
    uneven = sum(_is_uneven(*each) for each in zip(shapes, groups, strict=True))
    return UnevenChannels(uneven, len(shapes))


def _groups_of(node: object) -> int:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}  # type: ignore[attr-defined]
    return int(attributes.get("group", 1))


def _is_uneven(shape: tuple[int, ...], groups: int) -> bool:
    if len(shape) != 4:
        return False
    outputs, inputs = shape[:2]
    if groups > 1:
        return inputs == 1 and outputs == groups and outputs % MULTIPLE > 0
    return inputs >= FIRST_BLOCKED and inputs % MULTIPLE > 0
