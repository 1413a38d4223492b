"""Random ONNX graphs with zeros in them: for property tests of collapse-onnx.

Built node by node from a seed; every value on the way has rank 4, of known channels and side, until
a head flattens it. No torch, no exporter.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


@dataclass
class Value:
    name: str
    channels: int
    side: int


@dataclass
class Build:
    """A graph that grows. `opset` decides how parameters of movement operators are given."""

    seed: int
    opset: int = OPSET
    dtype: type = np.float32
    largest: float = 1.0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def constant(self, array: np.ndarray, kind: str = "c") -> str:
        name = f"{kind}_{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def numbers(self, *shape: int) -> np.ndarray:
        return (self.random.standard_normal(shape) * 0.5).astype(self.dtype)

    def add(
        self, kind: str, inputs: list[str], outputs: int = 1, **attributes: object
    ) -> list[str]:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, inputs, names, f"{kind}_{len(self.nodes)}", **attributes)
        )
        return names

    def one(self, kind: str, inputs: list[str], **attributes: object) -> str:
        return self.add(kind, inputs, **attributes)[0]

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def some(self, count: int) -> np.ndarray:
        """A random mask: of none, of some or, seldom, of the largest share."""
        share = self.random.choice([0.0, 0.3, 0.6, self.largest], p=[0.25, 0.35, 0.3, 0.1])
        return self.random.random(count) < share

    def model(
        self, outputs: list[str], batch: str | int = "n", **inputs: object
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "random",
            [
                helper.make_tensor_value_info(
                    name,
                    helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)),
                    [batch, *shape],  # type: ignore[misc]
                )
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            list(self.constants.values()),
        )
        for value in graph.output:
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def reduced(b: Build, kind: str, x: str, axes: list[int], since: int) -> str:
    """A reduction over space; from some opset on its axes are an input."""
    if b.opset >= since:
        return b.one(kind, [x, b.constant(np.array(axes))], keepdims=1)
    return b.one(kind, [x], axes=axes, keepdims=1)


def slice_of(b: Build, x: str, starts: list[int], ends: list[int], axes: list[int]) -> str:
    if b.opset < 10:
        return b.one("Slice", [x], starts=starts, ends=ends, axes=axes)
    return b.one("Slice", [x, *(b.constant(np.array(n)) for n in (starts, ends, axes))])


def pad_of(b: Build, x: str, before: int, after: int) -> str:
    amounts = [0, before, 0, 0, 0, after, 0, 0]
    if b.opset < 11:
        return b.one("Pad", [x], pads=amounts)
    return b.one("Pad", [x, b.constant(np.array(amounts))])


def conv(b: Build, x: Value, out: int, kernel: int = 3, groups: int = 1, pad: bool = True) -> Value:
    weight = b.numbers(out, x.channels // groups, kernel, kernel)
    weight[b.some(out)] = 0
    if b.chance(0.5):
        weight[:, b.some(x.channels // groups)] = 0
    inputs = [x.name, b.constant(weight, "w")]
    if b.chance(0.6):
        bias = b.numbers(out)
        bias[b.some(out)] = 0
        inputs.append(b.constant(bias, "b"))
    edge = kernel // 2 if pad else 0
    name = b.one("Conv", inputs, kernel_shape=[kernel, kernel], group=groups, pads=[edge] * 4)
    return Value(name, out, x.side + 2 * edge - kernel + 1)


def norm(b: Build, x: Value) -> Value:
    scale, shift, mean = (b.numbers(x.channels) for _ in range(3))
    closed = b.some(x.channels)
    scale[closed] = 0
    if b.chance(0.7):
        shift[closed] = 0
    variance = np.abs(b.numbers(x.channels)) + b.dtype(0.5)
    inputs = [x.name, *(b.constant(a) for a in (scale, shift, mean, variance))]
    return Value(b.one("BatchNormalization", inputs), x.channels, x.side)


def gate(b: Build, x: Value) -> Value:
    mask = (~b.some(x.channels)).astype(b.dtype)
    if b.chance(0.3):
        mask *= b.numbers(x.channels)
    shape = (1, -1, 1, 1) if b.chance(0.5) else (-1, 1, 1)
    operands = [x.name, b.constant(mask.reshape(shape), "gate")]
    if b.chance(0.3):
        operands.reverse()
    return Value(b.one("Mul", operands), x.channels, x.side)


def activation(b: Build, x: Value) -> Value:
    kinds = (
        "Relu",
        "Sigmoid",
        "HardSwish",
        "LeakyRelu",
        "Elu",
        "Tanh",
        "Clip",
        "PRelu",
        "Softplus",
    )
    kind = str(b.random.choice(kinds))
    if kind == "Clip" and b.opset < 11:
        return Value(b.one(kind, [x.name], min=-0.5, max=1.0), x.channels, x.side)
    if kind == "Clip":
        low, high = (b.constant(np.array(n, b.dtype)) for n in (-0.5, 1.0))
        return Value(b.one(kind, [x.name, low, high]), x.channels, x.side)
    if kind == "PRelu":
        slope = b.constant(b.numbers(x.channels, 1, 1))
        return Value(b.one(kind, [x.name, slope]), x.channels, x.side)
    if kind == "HardSwish" and b.opset < 14:
        kind = "Relu"
    return Value(b.one(kind, [x.name]), x.channels, x.side)


def pool(b: Build, x: Value) -> Value:
    kind = str(b.random.choice(["MaxPool", "AveragePool"]))
    attributes: dict[str, object] = {
        "kernel_shape": [3, 3],
        "strides": [1, 1],
        "pads": [1, 1, 1, 1],
    }
    if kind == "AveragePool":
        attributes["count_include_pad"] = int(b.random.integers(2))
    return Value(b.one(kind, [x.name], **attributes), x.channels, x.side)


def squeeze_excite(b: Build, x: Value) -> Value:
    pooled = Value(b.one("GlobalAveragePool", [x.name]), x.channels, 1)
    if b.chance(0.4):
        pooled.name = reduced(b, "ReduceMean", x.name, [2, 3], since=18)
    small = activation(b, conv(b, pooled, max(1, x.channels // 2), kernel=1))
    factor = conv(b, small, x.channels, kernel=1)
    name = b.one("Mul", [x.name, b.one("Sigmoid", [factor.name])])
    return Value(name, x.channels, x.side)


def residual(b: Build, x: Value) -> Value:
    inner = activation(b, conv(b, x, int(b.random.integers(1, 5)), kernel=3))
    branch = norm(b, conv(b, inner, x.channels, kernel=1))
    if b.chance(0.3):
        branch = gate(b, branch)
    operands = [x.name, branch.name]
    if b.chance(0.5):
        operands.reverse()
    kind = "Sum" if b.chance(0.2) else "Add"
    return Value(b.one(kind, operands), x.channels, x.side)


def joined(b: Build, x: Value) -> Value:
    others = [conv(b, x, int(b.random.integers(1, 5)), kernel=1) for _ in range(2)]
    names = [x.name, *(o.name for o in others)]
    channels = x.channels + sum(o.channels for o in others)
    return Value(b.one("Concat", names, axis=1), channels, x.side)


def depthwise(b: Build, x: Value) -> Value:
    times = int(b.random.integers(1, 3))
    return conv(b, x, x.channels * times, groups=x.channels, pad=b.chance(0.7) or x.side < 5)


def grouped(b: Build, x: Value) -> Value:
    for groups in (2, 3):
        if x.channels % groups == 0:
            return conv(b, x, groups * int(b.random.integers(1, 4)), groups=groups)
    return conv(b, x, 4)


def transposed(b: Build, x: Value) -> Value:
    groups = 2 if x.channels % 2 == 0 and b.chance(0.4) else 1
    out = groups * int(b.random.integers(1, 4))
    kernel = int(b.random.choice([1, 3]))
    weight = b.numbers(x.channels, out // groups, kernel, kernel)
    weight[b.some(x.channels)] = 0
    weight[:, b.some(out // groups)] = 0
    inputs = [x.name, b.constant(weight, "w")]
    if b.chance(0.5):
        inputs.append(b.constant(b.numbers(out), "b"))
    pads = [kernel // 2] * 4
    return Value(b.one("ConvTranspose", inputs, group=groups, pads=pads), out, x.side)


def shuffle(b: Build, x: Value) -> Value:
    groups = next((g for g in (2, 3) if x.channels % g == 0), 1)
    free = 0 if b.chance(0.5) else -1
    inner = [free, groups, x.channels // groups, x.side, x.side]
    one = b.one("Reshape", [x.name, b.constant(np.array(inner))])
    two = b.one("Transpose", [one], perm=[0, 2, 1, 3, 4])
    last = b.constant(np.array([free, x.channels, x.side, x.side]))
    return Value(b.one("Reshape", [two, last]), x.channels, x.side)


def sliced(b: Build, x: Value) -> Value:
    if x.channels < 2:
        return x
    start = int(b.random.integers(0, x.channels - 1))
    end = int(b.random.integers(start + 1, x.channels + 1))
    return Value(slice_of(b, x.name, [start], [end], [1]), end - start, x.side)


def split(b: Build, x: Value) -> Value:
    if x.channels < 2:
        return x
    first = int(b.random.integers(1, x.channels))
    sizes = [first, x.channels - first]
    if b.opset < 13:
        low, high = b.add("Split", [x.name], outputs=2, axis=1, split=sizes)
    else:
        low, high = b.add("Split", [x.name, b.constant(np.array(sizes))], outputs=2, axis=1)
    left = activation(b, Value(low, first, x.side))
    right = conv(b, Value(high, x.channels - first, x.side), int(b.random.integers(1, 4)), kernel=1)
    names = [left.name, right.name]
    return Value(b.one("Concat", names, axis=1), first + right.channels, x.side)


def padded(b: Build, x: Value) -> Value:
    before, after = (int(n) for n in b.random.integers(0, 3, 2))
    return Value(pad_of(b, x.name, before, after), x.channels + before + after, x.side)


def shortcut(b: Build, x: Value) -> Value:
    """Option A: slices space, pads channels, adds."""
    branch = norm(b, conv(b, x, x.channels + 2))
    wider = pad_of(b, x.name, 1, 1)
    return Value(b.one("Add", [wider, branch.name]), x.channels + 2, x.side)


def bias_add(b: Build, x: Value) -> Value:
    shift = b.numbers(x.channels, 1, 1)
    return Value(b.one(str(b.random.choice(["Add", "Sub"])), [x.name, b.constant(shift)]),
                 x.channels, x.side)  # fmt: skip


def picked(b: Build, x: Value) -> Value:
    places = b.random.permutation(x.channels)[: max(1, x.channels - 1)]
    return Value(b.one("Gather", [x.name, b.constant(places)], axis=1), len(places), x.side)


def depth_to_space(b: Build, x: Value) -> Value:
    if x.channels % 4 or x.side > 8 or b.opset < 11:
        return x
    mode = str(b.random.choice(["DCR", "CRD"]))
    name = b.one("DepthToSpace", [x.name], blocksize=2, mode=mode)
    return Value(name, x.channels // 4, 2 * x.side)


def channels_last(b: Build, x: Value) -> Value:
    """A linear layer on the last axis, between transposes, as ConvNeXt has it."""
    out = int(b.random.integers(1, 6))
    weight = b.numbers(x.channels, out)
    weight[:, b.some(out)] = 0
    last = b.one("Transpose", [x.name], perm=[0, 2, 3, 1])
    product = b.one("MatMul", [last, b.constant(weight, "w")])
    shifted = b.one("Add", [product, b.constant(b.numbers(out), "b")])
    return Value(b.one("Transpose", [shifted], perm=[0, 3, 1, 2]), out, x.side)


def by_shape(b: Build, x: Value) -> Value:
    """What exporters write: sizes taken from the value itself."""
    if b.opset < 11:
        return x
    shape = b.one("Shape", [x.name])
    head = slice_of(b, shape, [0], [2], [0])
    sizes = b.one("Concat", [head, b.constant(np.array([x.side * 2, x.side * 2]))], axis=0)
    empty = b.constant(np.zeros(0, np.float32)) if b.opset < 13 else ""
    name = b.one("Resize", [x.name, empty, empty, sizes], mode="nearest")
    return Value(slice_of(b, name, [0, 0], [x.side] * 2, [2, 3]), x.channels, x.side)


def through_shape(b: Build, x: Value) -> Value:
    """A reshape to (n, c, -1) and back, with n and c read from the value."""
    shape = b.one("Shape", [x.name])
    n, c = (b.one("Gather", [shape, b.constant(np.array([i]))]) for i in (0, 1))
    flat = b.one("Concat", [n, c, b.constant(np.array([-1]))], axis=0)
    rows = b.one("Softmax", [b.one("Reshape", [x.name, flat])], axis=2)  # over space
    return Value(b.one("Reshape", [rows, shape]), x.channels, x.side)


def normalised(b: Build, x: Value) -> Value:
    """What mixes channels and is no matrix: all of them have to stay."""
    return Value(b.one("LpNormalization", [x.name], axis=1), x.channels, x.side)


def instance_norm(b: Build, x: Value) -> Value:
    scale = b.numbers(x.channels)
    scale[b.some(x.channels)] = 0
    parameters = [b.constant(a) for a in (scale, b.numbers(x.channels))]
    return Value(b.one("InstanceNormalization", [x.name, *parameters]), x.channels, x.side)


STEPS: tuple[Callable[[Build, Value], Value], ...] = (
    lambda b, x: conv(b, x, int(b.random.integers(1, 9)), int(b.random.choice([1, 3]))),
    lambda b, x: conv(b, x, int(b.random.integers(1, 9)), pad=x.side < 5),
    norm, gate, activation, pool, squeeze_excite, residual, joined, depthwise, grouped, transposed,
    shuffle, sliced, split, padded, shortcut, bias_add, picked, depth_to_space, channels_last,
    by_shape, through_shape, normalised, instance_norm, residual, norm, activation,
)  # fmt: skip


def head(b: Build, x: Value) -> str:
    """Flatten and Gemm; or pooled first; or the value itself."""
    choice = b.random.random()
    if choice < 0.25:
        return x.name
    if choice < 0.6:
        x = Value(b.one("GlobalAveragePool", [x.name]), x.channels, 1)
    if b.chance(0.5):
        flat = b.one("Flatten", [x.name], axis=1)
    else:
        count = x.channels * x.side**2
        sizes = [-1, count] if b.chance(0.5) else [0, -1]
        flat = b.one("Reshape", [x.name, b.constant(np.array(sizes))])
    across = int(b.random.integers(2))
    weight = b.numbers(x.channels * x.side**2, 5)
    weight[np.repeat(b.some(x.channels), x.side**2)] = 0
    stored = b.constant(np.ascontiguousarray(weight.T) if across else weight, "w")
    return b.one("Gemm", [flat, stored, b.constant(b.numbers(5), "b")], transB=across)


def random_model(seed: int, steps: int = 8, opset: int = OPSET) -> onnx.ModelProto:
    """A graph of that many random steps behind a first convolution; sometimes two outputs."""
    b = Build(seed, opset)
    x = conv(b, Value("x", 3, 6), int(b.random.integers(2, 9)))
    outputs = []
    for _ in range(steps):
        x = STEPS[int(b.random.integers(len(STEPS)))](b, x)
        if b.chance(0.05):
            outputs.append(x.name)
    last = head(b, x)
    return b.model(list(dict.fromkeys([*outputs, last])), x=(3, 6, 6))
