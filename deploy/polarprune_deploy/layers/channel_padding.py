"""The same network with zero channels added until its channel counts are multiples.

It computes what it computed before: an added channel has zero weights on both sides. So what it
takes longer or shorter is due to the counts alone. Channels that an operator not known here touches
(a concatenation, a group convolution, inputs and outputs) stay as they are. Whoever uses the result
compares its outputs with the original's, as `layer_times_onnxruntime` does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from polarprune_deploy.layers.layers_onnx import ACTIVATIONS, infer_shapes

if TYPE_CHECKING:
    import onnx

_ALIKE = ACTIVATIONS.union(
    [
        "Identity",
        "Cast",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Resize",
        "Softplus",
        "Erf",
        "Mish",
    ]
)
_PAIRWISE = ("Add", "Mul", "Sub", "Sum")


@dataclass
class _Plan:
    """Channel groups of values (a union-find) and which axis of which weight each one sizes."""

    graph: Any
    shapes: dict[str, tuple[int, ...]]
    parent: dict[str, str] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    # weight -> [(axis, value whose channels that axis has, what to fill with)]
    axes: dict[str, list[tuple[int, str, float]]] = field(default_factory=dict)
    edits: list[Callable[["_Widths"], None]] = field(default_factory=list)
    # Zero channels put around a value: (in, before, out), which must still fit when padded.
    offsets: list[tuple[str, int, str]] = field(default_factory=list)

    def root(self, value: str) -> str:
        while self.parent.setdefault(value, value) != value:
            value = self.parent[value]
        return value

    def tie(self, first: str, second: str) -> None:
        one, other = self.root(first), self.root(second)
        self.parent[one] = other
        if one in self.pinned:
            self.pinned.add(other)

    def pin(self, *values: str) -> None:
        self.pinned.update(self.root(value) for value in values)

    def width(self, value: str) -> int:
        shape = self.shapes.get(value, ())
        return shape[1] if len(shape) > 1 else 0

    def size(self, weight: str, axis: int, value: str, fill: float = 0.0) -> None:
        self.axes.setdefault(weight, []).append((axis, value, fill))


_Widths = Callable[[str], int]


def pad_channels(model: "onnx.ModelProto", multiple: int) -> "onnx.ModelProto | None":
    """A copy whose channel counts are multiples where they can be; None where nothing changes."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    plan = _plan(copy, stored)

    def padded(value: str) -> int:
        width = plan.width(value)
        return width if plan.root(value) in plan.pinned else -(-width // multiple) * multiple

    # Ends: with both sides as they were, everything fits.
    while bad := [(s, o) for s, before, o in plan.offsets if before + padded(s) > padded(o)]:
        plan.pin(*(value for pair in bad for value in pair))
    changed = False
    for name, axes in plan.axes.items():
        array = numpy_helper.to_array(stored[name])
        for axis, value, fill in axes:
            extra = padded(value) - array.shape[axis]
            changed |= extra > 0
            around = [(0, extra if i == axis else 0) for i in range(array.ndim)]
            array = np.pad(array, around, constant_values=fill)
        stored[name].CopyFrom(numpy_helper.from_array(array, name))
    if not changed:
        return None
    for edit in plan.edits:
        edit(padded)
    del copy.graph.value_info[:]
    return copy


def _plan(model: "onnx.ModelProto", stored: dict[str, Any]) -> _Plan:
    graph = model.graph
    plan = _Plan(graph, infer_shapes(model, 2))
    plan.pin(*(value.name for value in graph.input))
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    for node in graph.node:
        shared = any(uses[name] > 1 for name in node.input if name in stored)
        if not _take(node, plan, stored, shared):
            touched = [name for name in (*node.input, *node.output) if name and name not in stored]
            plan.pin(*touched)
    plan.pin(*(value.name for value in graph.output))
    return plan


def _take(node: Any, plan: _Plan, stored: dict[str, Any], shared: bool) -> bool:
    """Note what the node means for channels; False where it is not known."""
    kind, source, out = node.op_type, node.input[0], node.output[0]
    if kind in _ALIKE and plan.width(source) == plan.width(out):
        plan.tie(source, out)
        return True
    if kind == "ReduceMean":
        if len(node.input) < 2 or node.input[1] not in stored:
            return False
        axes = {int(a) for a in _ints(stored[node.input[1]])}
        rank = len(plan.shapes[source])
        if axes & {0, 1, -rank, 1 - rank}:
            return False
        plan.tie(source, out)
        return True
    if kind == "Slice":
        return _slice(node, plan, stored)
    if kind == "Pad":
        return _pad(node, plan, stored)
    if kind == "Reshape":
        return _reshape(node, plan, stored)
    if kind == "Flatten":
        if plan.width(source) != plan.width(out):
            return False
        plan.tie(source, out)
        return True
    if shared:
        return False
    if kind == "Conv":
        return _convolution(node, plan, stored)
    if kind in ("Gemm", "MatMul"):
        return _linear(node, plan, stored)
    if kind == "BatchNormalization" and all(name in stored for name in node.input[1:5]):
        plan.tie(source, out)
        for name, fill in zip(node.input[1:5], (0.0, 0.0, 0.0, 1.0), strict=True):
            plan.size(name, 0, out, fill)
        return True
    return kind in _PAIRWISE and _pairwise(node, plan, stored)


def _convolution(node: Any, plan: _Plan, stored: dict[str, Any]) -> bool:
    source, weight, out = node.input[0], node.input[1], node.output[0]
    if weight not in stored:
        return False
    group = next((a for a in node.attribute if a.name == "group"), None)
    groups = group.i if group is not None else 1
    if groups == 1:
        plan.size(weight, 1, source)
    elif groups == plan.width(source) == plan.width(out):
        plan.tie(source, out)
        plan.edits.append(lambda width: setattr(group, "i", width(out)))
    else:
        return False
    plan.size(weight, 0, out)
    return _bias(node, plan, stored, out)


def _linear(node: Any, plan: _Plan, stored: dict[str, Any]) -> bool:
    source, weight, out = node.input[0], node.input[1], node.output[0]
    if weight not in stored or len(plan.shapes[source]) != 2:
        return False
    if any(a.name == "transA" and a.i for a in node.attribute):
        return False
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    plan.size(weight, 1 if transposed else 0, source)
    plan.size(weight, 0 if transposed else 1, out)
    return _bias(node, plan, stored, out)


def _bias(node: Any, plan: _Plan, stored: dict[str, Any], out: str) -> bool:
    if len(node.input) > 2 and node.input[2]:
        bias = node.input[2]
        if bias not in stored or tuple(stored[bias].dims) != (plan.width(out),):
            return False
        plan.size(bias, 0, out)
    return True


def _pairwise(node: Any, plan: _Plan, stored: dict[str, Any]) -> bool:
    out = node.output[0]
    for name in node.input:
        if name not in stored:
            if plan.width(name) != plan.width(out):
                return False
            plan.tie(name, out)
            continue
        dims = tuple(stored[name].dims)
        axis = len(dims) - len(plan.shapes[out]) + 1
        if axis >= 0 and dims[axis] != 1:
            plan.size(name, axis, out)
    return True


def _slice(node: Any, plan: _Plan, stored: dict[str, Any]) -> bool:
    if len(node.input) < 4 or node.input[3] not in stored:
        return False
    rank = len(plan.shapes[node.input[0]])
    if {axis % rank for axis in _ints(stored[node.input[3]])} & {0, 1}:
        return False
    plan.tie(node.input[0], node.output[0])
    return True


def _pad(node: Any, plan: _Plan, stored: dict[str, Any]) -> bool:
    """Zeros around the image, or around the channels, as ResNets for CIFAR widen a shortcut."""
    from onnx import numpy_helper

    source, out = node.input[0], node.output[0]
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
    if mode != b"constant" or node.input[1] not in stored or len(node.input) > 3:
        return False
    if len(node.input) == 3 and node.input[2]:
        filling = stored.get(node.input[2])
        if filling is None or numpy_helper.to_array(filling).any():
            return False
    amounts = _ints(stored[node.input[1]])
    rank = len(plan.shapes[source])
    before, after = amounts[1], amounts[rank + 1]
    if not before and not after:
        plan.tie(source, out)
        return True
    plan.offsets.append((source, before, out))

    def widen(width: _Widths) -> None:
        wider = list(amounts)
        wider[rank + 1] = width(out) - before - width(source)
        _own_constant(node, wider, plan)

    plan.edits.append(widen)
    return True


def _reshape(node: Any, plan: _Plan, stored: dict[str, Any]) -> bool:
    """Only the one that drops empty sides behind the channels: (n, c, 1, 1) to (n, c)."""
    source, out = node.input[0], node.output[0]
    shapes = plan.shapes[source], plan.shapes[out]
    if node.input[1] not in stored or shapes[0][:2] != shapes[1][:2]:
        return False
    if any(side != 1 for shape in shapes for side in shape[2:]):
        return False
    sides = _ints(stored[node.input[1]])
    plan.tie(source, out)

    def widen(width: _Widths) -> None:
        wanted = [sides[0], width(out), *sides[2:]] if sides[1] > 0 else sides
        _own_constant(node, wanted, plan)

    plan.edits.append(widen)
    return True


def _own_constant(node: Any, values: list[int], plan: _Plan) -> None:
    """Give its second input these numbers; other nodes that shared the constant keep theirs."""
    from onnx import numpy_helper

    name = f"{node.name or node.output[0]}_padded_1"
    plan.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    node.input[1] = name


def _ints(tensor: Any) -> list[int]:
    from onnx import numpy_helper

    return [int(value) for value in numpy_helper.to_array(tensor).reshape(-1)]
