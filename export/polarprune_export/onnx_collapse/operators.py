"""What kinds of operators there are; any that is in no table pins the channels that it reads."""

from typing import Any

import onnx_ir as ir

# Each output value depends on the values at its own place alone (operands are broadcast).
ELEMENTWISE = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round",
    "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish",
    "Tan", "Tanh", "ThresholdedRelu", "QuantizeLinear", "DequantizeLinear",
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean",
    "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
})  # fmt: skip
MIXING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
PER_CHANNEL = frozenset({"BatchNormalization", "InstanceNormalization"})
SPATIAL = frozenset({
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
    "Resize", "Upsample",
})  # fmt: skip
REDUCING = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
})  # fmt: skip
NORMALISING = frozenset({"Hardmax", "LogSoftmax", "Softmax"})
MOVING = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Pad", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
# Of one constant these make the same constant; of zeros those that follow make zeros.
KEEP_CONSTANT = frozenset({"ReduceMean", "ReduceMax", "ReduceMin"})
KEEP_ZERO = frozenset({"ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare"})
# A node of constants alone that may be evaluated: no random numbers, no control flow. Weights that
# are standardised are computed with reductions and norms.
FOLDABLE = ELEMENTWISE | MOVING | PER_CHANNEL | REDUCING | frozenset({"ConstantOfShape", "Shape"})

# Weights of whole numbers, read without a DequantizeLinear: not followed.
QUANTISED = frozenset({
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm",
    "QLinearConv", "QLinearMatMul",
})  # fmt: skip


def is_standard(node: ir.Node) -> bool:
    """Whether the operator is one of ONNX itself."""
    return node.domain in ("", "ai.onnx")


def kind_of(node: ir.Node) -> str:
    """The operator's name, or nothing for one of a domain that is not ONNX's own."""
    return node.op_type if is_standard(node) else ""


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value, or the default."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def words_for(node: ir.Node) -> str:
    """A node in a message."""
    domain = "" if is_standard(node) else f"{node.domain}."
    return f"{domain}{node.op_type} {node.name!r}" if node.name else f"{domain}{node.op_type}"


def opsets_of(model: ir.Model) -> dict[str, int]:
    """The version of ONNX's own operators, which are the only ones that are looked into."""
    versions = model.opset_imports
    return {"": versions[""] if "" in versions else versions["ai.onnx"]}


def captured(node: ir.Node) -> list[ir.Value]:
    """What the subgraphs of a node (If, Loop, Scan) take from outside."""
    found = []
    for attr in node.attributes.values():
        graphs = [attr.value] if attr.type == ir.AttributeType.GRAPH else []
        graphs += list(attr.value) if attr.type == ir.AttributeType.GRAPHS else []
        for graph in graphs:
            found += list(graph.outputs)  # what a subgraph gives may be an outer value
            for inner in graph.all_nodes():
                found += [value for value in inner.inputs if value is not None]
    return found
