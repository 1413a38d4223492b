"""What must not be in an exported graph: index operators, gates, and work that does nothing.

1. Gather and Scatter of every kind: channels picked by index are slow, and a physical cut leaves
   none. (A Gather with one constant scalar index is a slice that drops its axis, and one from a
   `Shape` picks a number; both pass.)
2. Where, comparisons, rounding, random numbers and control flow: gates.
3. A Mul by constants that are all 0 or 1: a mask.
4. A BatchNormalization directly behind a convolution or matrix product that feeds only it: it
   should have been folded. (Where the convolution, or its weight, is read elsewhere too it cannot
   be, and passes.)
5. Identity and Dropout: left-overs.

Some networks compute with operators of 1 to 3 themselves (attention masks, uneven pooling). Given
how many of each the network holds before anything is pruned (`base_operators.py`), as many pass; 4
and 5 never do.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarprune.errors import Refused

if TYPE_CHECKING:
    import onnx

BASE_OPERATORS = "operators"
"""Where the manifest's `base` keeps what `lint_onnx` takes as `base`."""
INDEX_OPERATORS = {
    *("Gather", "GatherElements", "GatherND"),
    *("Scatter", "ScatterElements", "ScatterND", "TensorScatter"),
}
GATE_OPERATORS = {
    *("Where", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not", "And", "Or"),
    *("Round", "Sign", "If", "Loop", "Scan", "Bernoulli", "Multinomial"),
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
}
IDLE_OPERATORS = {"Identity", "Dropout"}
MIXING_OPERATORS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# These rearrange or convert a constant; whether all its values are 0 or 1 does not change.
VALUE_KEEPING = {"Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class _Finding:
    kind: str
    words: str
    explainable: bool = True


def lint_onnx(path: Path, base: Mapping[str, int] | None = None) -> None:
    """Passes a graph that holds none of the five findings of this module.

    Args:
        base: how many operators of each kind the network holds before anything is pruned; as many
            findings of the first three kinds pass. None where that is not known.

    Raises:
        Refused: every finding, with the node's name, in one line.
    """
    import onnx

    lint_model(onnx.load(str(path)), str(path), base)


def lint_model(model: "onnx.ModelProto", where: str, base: Mapping[str, int] | None) -> None:
    """`lint_onnx` for a model that is already in memory; `where` names it in the message."""
    base = base or {}
    found = list(_findings(model.graph))
    counts = Counter(finding.kind for finding in found if finding.explainable)
    more = {kind for kind, count in counts.items() if count > base.get(kind, 0)}
    left = [finding.words for finding in found if not finding.explainable or finding.kind in more]
    if left:
        own = [f"{base[kind]} {kind}" for kind in sorted(more) if base.get(kind)]
        known = f" (before pruning it has {', '.join(own)})" if own else ""
        raise Refused(
            f"{where} holds operators that a pruned network must not have: {'; '.join(left)}"
            f"{known}; collapse the network before exporting it, and report this if you did"
        )


def explainable_findings(model: "onnx.ModelProto") -> dict[str, int]:
    """How many findings of each kind a network's own computation may explain."""
    return dict(Counter(found.kind for found in _findings(model.graph) if found.explainable))


def _findings(graph: "onnx.GraphProto") -> Iterator[_Finding]:
    producers = {output: node for node in graph.node for output in node.output}
    readers = Counter(n for node in graph.node for n in node.input)
    readers.update(value.name for value in graph.output)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        kind, name = node.op_type, repr(node.name)
        before = producers.get(node.input[0]) if node.input else None
        if kind in INDEX_OPERATORS and not _is_slice(node, before, producers, constants):
            yield _Finding(kind, f"{kind} {name} (picks by index)")
        elif kind == "BatchNormalization" and _could_fold(before, readers):
            assert before is not None
            words = f"{kind} {name} behind {before.name!r} (not folded)"
            yield _Finding(kind, words, explainable=False)
        elif kind == "Mul" and any(_is_mask(n, producers, constants) for n in node.input):
            yield _Finding(kind, f"{kind} {name} (by constants 0 or 1)")
        elif kind in IDLE_OPERATORS:
            yield _Finding(kind, f"{kind} {name} (does nothing)", explainable=False)
        elif kind in GATE_OPERATORS:
            yield _Finding(kind, f"{kind} {name} (a gate)")


def _is_slice(
    node: "onnx.NodeProto",
    before: "onnx.NodeProto | None",
    producers: dict[str, "onnx.NodeProto"],
    constants: dict[str, "onnx.TensorProto"],
) -> bool:
    """A Gather that picks one place, known in advance, or a number out of a shape."""
    if before is not None and before.op_type == "Shape":
        return True
    if node.op_type != "Gather":
        return False
    index = _values(node.input[1], producers, constants)
    return index is not None and index.ndim == 0


def _could_fold(before: "onnx.NodeProto | None", readers: Mapping[str, int]) -> bool:
    """Whether a norm behind this node had to be folded into it."""
    if before is None or before.op_type not in MIXING_OPERATORS:
        return False
    return readers[before.output[0]] == 1 and all(readers[n] == 1 for n in before.input[1:2])


def _is_mask(
    name: str, producers: dict[str, "onnx.NodeProto"], constants: dict[str, "onnx.TensorProto"]
) -> bool:
    """Whether a value is a constant that holds nothing but zeros and ones."""
    node = producers.get(name)
    while node is not None and node.op_type in VALUE_KEEPING:
        name = node.input[0]
        node = producers.get(name)
    values = _values(name, producers, constants)
    return values is not None and bool(np.isin(values, (0, 1)).all())


def _values(
    name: str, producers: dict[str, "onnx.NodeProto"], constants: dict[str, "onnx.TensorProto"]
) -> "np.ndarray | None":
    """A constant's values, None where the value is computed."""
    from onnx import numpy_helper

    if name in constants:
        return numpy_helper.to_array(constants[name])
    node = producers.get(name)
    return _constant_values(node) if node is not None and node.op_type == "Constant" else None


def _constant_values(node: "onnx.NodeProto") -> "np.ndarray | None":
    from onnx import helper, numpy_helper

    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return numpy_helper.to_array(value)
        if attribute.name in {"value_float", "value_floats", "value_int", "value_ints"}:
            return np.asarray(value)
    return None
