"""Convolutions that ONNX Runtime keeps out of its fast layout on a CPU, for their channel counts.

On x86 its CPU provider keeps images in blocks of channels and fills the last block with zeros, but
only of counts that are multiples of 4. What else there is becomes a matrix product in the plain
layout, with reorderings around it: a ResNet-50 of half of the MACs was 1.34 times as fast as dense
with 44 of its 53 convolutions there, and 1.75 times with none (benchmarks/resnet50_cuts.py).
"""

from pathlib import Path

from torch import nn

from polarprune.network_files import is_network_folder
from polarprune.runs.run_folder import RUN_FILE, RunFolder

MULTIPLE = 4
FIRST_BLOCKED = 16
"""Fewer input channels (images have 1 or 3) are read as they are: they are less than a block."""
_NAMED = 3


def uneven_layers(path: Path | str) -> list[str]:
    """Those of a float32 ONNX file's convolutions that stay outside, by name.

    Source: `NchwcTransformerImpl::TransformConv` of ONNX Runtime, held against its optimised graph
    by a test. Grouped convolutions that are not depthwise are not counted as uneven.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return [
        node.input[1].removesuffix(".weight")
        for node in graph.node
        if node.op_type == "Conv" and _is_uneven(weights.get(node.input[1], ()), _groups_of(node))
    ]


def uneven_words(path: Path | str, source: str | Path) -> str:
    """What to say of them to who exported a run, a saved network or a model."""
    layers = uneven_layers(path)
    one = len(layers) == 1
    names = ", ".join(layers[:_NAMED]) + (", ..." if len(layers) > _NAMED else "")
    words = (
        f"{len(layers)} convolution{' reads or has' if one else 's read or have'} channel counts "
        f"that are no multiple of {MULTIPLE} ({names}): ONNX Runtime is slow at these on a CPU."
    )
    if is_network_folder(Path(source)):
        return words  # of what network it is nobody knows any more
    cut = _cut_uneven(layers, Path(source))
    if cut == 0:
        return f"{words} The network itself has {'this count' if one else 'these counts'}."
    which = "" if cut == len(layers) else f" {cut} of"
    return f"{words} `train --align {MULTIPLE}` avoids{which} {'it' if one else 'them'}."


def _cut_uneven(layers: list[str], source: Path) -> int:
    """How many of them read another number of channels before a run cut the network."""
    if not (source / RUN_FILE).exists():
        return 0
    base = dict(RunFolder(source).base_network().named_modules())
    found = [base.get(name) for name in layers]
    return sum(isinstance(each, nn.Conv2d) and each.in_channels % MULTIPLE == 0 for each in found)


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
