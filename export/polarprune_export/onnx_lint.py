"""What must not be in an exported graph: index operators, gates, and work that does nothing.

1. Gather and Scatter of every kind: channels picked by index are slow, and a physical cut leaves
   none. (Picking a number out of a `Shape` is not picking channels, and passes.)
2. A BatchNormalization directly behind a convolution or matrix product that feeds only it: it
   should have been folded. (Where the convolution is read elsewhere too it cannot be, and passes.)
3. A Mul by constants that are all 0 or 1: a mask.
4. Identity and Dropout: left-overs.
5. Where, comparisons, rounding, random numbers and control flow: gates.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarprune.errors import Refused

if TYPE_CHECKING:
    import onnx

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


def lint_onnx(path: Path) -> None:
    """Passes a graph that holds none of the five findings of this module.

    Raises:
        Refused: every finding, with the node's name, in one line.
    """
    import onnx

    lint_model(onnx.load(str(path)), str(path))


def lint_model(model: "onnx.ModelProto", where: str) -> None:
    """`lint_onnx` for a model that is already in memory; `where` names it in the message."""
    found = list(_findings(model.graph))
    if found:
        raise Refused(
            f"{where} holds operators that a pruned network must not have: {'; '.join(found)}; "
            "collapse the network before exporting it, and report this if you did"
        )


def _findings(graph: "onnx.GraphProto") -> Iterator[str]:
    producers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, int] = {}
    for name in [n for node in graph.node for n in node.input] + [o.name for o in graph.output]:
        readers[name] = readers.get(name, 0) + 1
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        kind = node.op_type
        before = producers.get(node.input[0]) if node.input else None
        if kind in INDEX_OPERATORS and not (before and before.op_type == "Shape"):
            yield f"{kind} {node.name!r} (picks by index)"
        elif kind == "BatchNormalization" and before and before.op_type in MIXING_OPERATORS:
            if readers[node.input[0]] == 1:
                yield f"BatchNormalization {node.name!r} behind {before.name!r} (not folded)"
        elif kind == "Mul" and any(_is_mask(name, producers, constants) for name in node.input):
            yield f"Mul {node.name!r} (by constants 0 or 1)"
        elif kind in IDLE_OPERATORS:
            yield f"{kind} {node.name!r} (does nothing)"
        elif kind in GATE_OPERATORS:
            yield f"{kind} {node.name!r} (a gate)"


def _is_mask(
    name: str, producers: dict[str, "onnx.NodeProto"], constants: dict[str, "onnx.TensorProto"]
) -> bool:
    """Whether a value is a constant that holds nothing but zeros and ones."""
    from onnx import numpy_helper

    node = producers.get(name)
    while node is not None and node.op_type in VALUE_KEEPING:
        name = node.input[0]
        node = producers.get(name)
    if name in constants:
        values = numpy_helper.to_array(constants[name])
    elif node is not None and node.op_type == "Constant":
        found = _constant_values(node)
        if found is None:
            return False
        values = found
    else:
        return False
    return bool(np.isin(values, (0, 1)).all())


def _constant_values(node: "onnx.NodeProto") -> "np.ndarray | None":
    from onnx import helper, numpy_helper

    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return numpy_helper.to_array(value)
        if attribute.name in {"value_float", "value_floats", "value_int", "value_ints"}:
            return np.asarray(value)
    return None
