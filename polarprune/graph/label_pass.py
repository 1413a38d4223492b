"""Second stage, the pass: give every channel of every tensor a label, and see where labels go.

Operators that only move data run *on the labels*; those that combine channels make new labels;
additions and products tie the labels they bring together; what is not understood pins the labels
it meets.
"""

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from polarprune.graph.labels import Labelled, Labels, Mix
from polarprune.graph.operators import (
    BINARY_FUNCTIONS,
    BINARY_METHODS,
    ELEMENTWISE_FUNCTIONS,
    ELEMENTWISE_METHODS,
    ELEMENTWISE_MODULES,
    MIXING_MODULES,
    MOVEMENT_FUNCTIONS,
    MOVEMENT_METHODS,
    MOVEMENT_MODULES,
    NORM_MODULES,
    REDUCTION_FUNCTIONS,
    REDUCTION_METHODS,
    SIZE_METHODS,
    SPATIAL_FUNCTIONS,
    SPATIAL_MODULES,
    ZERO_KEEPING_FUNCTIONS,
    ZERO_KEEPING_METHODS,
    ZERO_KEEPING_MODULES,
    calls,
    module_of,
)


def label_graph(graph_module: fx.GraphModule, example_input: Tensor) -> Labels:
    """Label every tensor of a normalised graph.

    Args:
        example_input: (n, ...); one evaluation-mode forward gives the shapes.
    """
    values = run_for_values(graph_module, example_input)
    pass_ = LabelPass(graph_module, values)
    for node in graph_module.graph.nodes:
        pass_.visit(node)
    pass_.tie_shared_layers()
    pass_.pin_shared_weights()
    pass_.labels.solve()
    return pass_.labels


def run_for_values(graph_module: fx.GraphModule, example_input: Tensor) -> dict[str, Any]:
    """Every node's value in one evaluation-mode forward; tensors as (shape) on the meta device."""

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            values[n.name] = torch.utils._pytree.tree_map_only(
                Tensor, lambda t: torch.empty(t.shape, device="meta"), result
            )
            return result

    values: dict[str, Any] = {}
    modes = {module: module.training for module in graph_module.modules()}
    graph_module.eval()
    try:
        with torch.no_grad():
            Recorder(graph_module).run(example_input)
    finally:
        for module, training in modes.items():
            module.training = training
    return values


class LabelPass:
    """Visits the nodes in order; one rule a family of operators."""

    def __init__(self, graph_module: fx.GraphModule, values: dict[str, Any]) -> None:
        self.root = graph_module
        self.values = values
        self.labels = Labels()
        self.env: dict[fx.Node, Any] = {}

    def visit(self, node: fx.Node) -> None:
        """Label what one node gives."""
        module = module_of(self.root, node)
        value = self._apply(node, module)
        self.env[node] = value
        if isinstance(value, Labelled):
            self.labels.tensors[node.name] = value

    def _apply(self, node: fx.Node, module: nn.Module | None) -> Any:
        if node.op == "placeholder":
            return self._opaque(node, "network input")
        if node.op == "get_attr":
            return self._parameter(node)
        if node.op == "output":
            for tensor in self._inputs(node):
                self.labels.pin(tensor, "network output")
            return None
        tensors = self._inputs(node)
        if not tensors:  # arithmetic on sizes, or a tensor made from them
            return self._opaque(node, "made from numbers, not from channels")
        if any(isinstance(self.env[n], tuple | list) for n in node.all_input_nodes):
            return self._part(node) or self._unknown(node, module)
        if calls(node, module, methods=SIZE_METHODS) or _reads_shape(node):
            return self._size(node, tensors[0])
        if not isinstance(self.values[node.name], Tensor):
            return self._unknown(node, module)  # several results: a pool that returns indices
        if calls(node, module, modules=MIXING_MODULES):
            assert module is not None
            return self._mix(node, module, tensors[0])
        if calls(node, module, modules=NORM_MODULES):
            return self._norm(node, tensors[0])
        if calls(
            node,
            module,
            modules=ELEMENTWISE_MODULES,
            functions=ELEMENTWISE_FUNCTIONS,
            methods=ELEMENTWISE_METHODS,
        ):
            return self._elementwise(node, module, tensors[0])
        if calls(node, module, functions=BINARY_FUNCTIONS, methods=BINARY_METHODS):
            return self._binary(node, tensors)
        if calls(node, module, modules=SPATIAL_MODULES, functions=SPATIAL_FUNCTIONS):
            return self._spatial(node, tensors[0])
        if calls(node, module, functions=REDUCTION_FUNCTIONS, methods=REDUCTION_METHODS):
            return self._mean(node, tensors[0])
        if calls(
            node,
            module,
            modules=MOVEMENT_MODULES,
            functions=MOVEMENT_FUNCTIONS,
            methods=MOVEMENT_METHODS,
        ):
            return self._move(node, module)
        return self._unknown(node, module)

    def _inputs(self, node: fx.Node) -> list[Labelled]:
        """The tensors that a node reads, those inside of tuples included."""
        leaves = torch.utils._pytree.tree_leaves([self.env[n] for n in node.all_input_nodes])
        return [leaf for leaf in leaves if isinstance(leaf, Labelled)]

    def _part(self, node: fx.Node) -> Any:
        """One of several results of an unknown operator; None where that is not what it takes."""
        whole = self.env[node.all_input_nodes[0]]
        index = node.args[1] if len(node.args) == 2 else None
        if node.target is not operator.getitem or not isinstance(index, int):
            return None
        return whole[index] if isinstance(whole, tuple | list) else None

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.values[node.name].shape)

    def _opaque(self, node: fx.Node, reason: str) -> Any:
        """One pinned label for a whole tensor whose channels cannot be told apart or cut."""
        value = self.values[node.name]
        return self._opaque_like(node, value, reason) if isinstance(value, Tensor) else value

    def _opaque_labels(self, node: fx.Node, reason: str) -> Labelled:
        """The same for a node that is known to give a tensor."""
        return self._opaque_like(node, self.values[node.name], reason)

    def _unknown(self, node: fx.Node, module: nn.Module | None) -> Any:
        name = type(module).__name__ if module is not None else _target_name(node)
        reason = f"operator {name} is not known to keep channels apart"
        self.labels.refuse(node.name, reason, *self._inputs(node))
        value = self.values[node.name]
        if isinstance(value, Tensor):
            return self._opaque(node, reason)
        return torch.utils._pytree.tree_map_only(
            Tensor, lambda t: self._opaque_like(node, t, reason), value
        )

    def _opaque_like(self, node: fx.Node, tensor: Tensor, reason: str) -> Labelled:
        label = self.labels.new(node.name, "opaque", 1)
        self.labels.pin(label, reason)
        return Labelled(torch.from_numpy(label).reshape([1] * tensor.dim()), tuple(tensor.shape))

    def _parameter(self, node: fx.Node) -> Any:
        value = self.values[node.name]
        if not isinstance(value, Tensor):
            return value
        if str(node.target) in self.labels.parameters:  # read before: one tensor, one cut
            return self.labels.parameters[str(node.target)]
        wide = [axis for axis, size in enumerate(value.shape) if size > 1]
        if len(wide) != 1:
            return self._opaque(node, "parameter that varies along several axes")
        fresh = self.labels.new(str(node.target), "parameter", value.shape[wide[0]])
        labelled = Labelled.along(fresh, wide[0], tuple(value.shape))
        self.labels.parameters[str(node.target)] = labelled
        return labelled

    def _mix(self, node: fx.Node, module: nn.Module, source: Labelled) -> Labelled:
        """Case 1: dense: new labels. Case 2: grouped: all of a group tied, in and out."""
        linear = isinstance(module, nn.Linear)
        axis = len(source.shape) - 1 if linear else 1
        inputs = source.vector(axis)
        layer = str(node.target)
        shape = self._shape(node)
        count = shape[axis]
        outputs = self.labels.new(layer, "out", count)
        if inputs is None:
            self.labels.refuse(node.name, "its input channels are not laid along one axis", source)
            inputs = np.repeat(self.labels.new(layer, "in", 1), source.shape[axis])
            self.labels.pin(inputs, "its input channels are not laid along one axis")
        groups = int(getattr(module, "groups", 1))
        if groups > 1:
            first_in = inputs.reshape(groups, -1)
            first_out = outputs.reshape(groups, -1)
            for others in (first_in, first_out):
                self.labels.tie(np.repeat(first_in[:, :1], others.shape[1], axis=1), others)
        if len(shape) != len(source.shape):
            self.labels.refuse(node.name, "an unbatched input", source)
        self.labels.mixes.append(
            Mix(node.name, node.all_input_nodes[0].name, layer, groups, axis, inputs, outputs)
        )
        return Labelled.along(outputs, axis, shape)

    def _norm(self, node: fx.Node, source: Labelled) -> Labelled:
        channels = source.vector(1)
        if channels is None:
            self.labels.refuse(node.name, "normalised values are not laid along axis 1", source)
            return source
        layer = str(node.target)
        if layer in self.labels.norms:
            self.labels.tie(self.labels.norms[layer], channels)
        self.labels.norms[layer] = channels
        return self._not_zero(node, source)

    def _not_zero(self, node: fx.Node, source: Labelled) -> Labelled:
        """Literal zeros become other values here: labels of their own, tied to the old ones."""
        flat = source.compact.reshape(-1).numpy()
        zero = np.asarray(self.labels.zero)[flat]
        if not zero.any():
            return source
        fresh = flat.copy()
        fresh[zero] = self.labels.new(node.name, "from_zero", int(zero.sum()))
        self.labels.tie(flat, fresh)
        return Labelled(torch.from_numpy(fresh).reshape(source.compact.shape), source.shape)

    def _elementwise(self, node: fx.Node, module: nn.Module | None, source: Labelled) -> Labelled:
        keeps_zero = calls(
            node,
            module,
            modules=ZERO_KEEPING_MODULES,
            functions=ZERO_KEEPING_FUNCTIONS,
            methods=ZERO_KEEPING_METHODS,
        )
        return source if keeps_zero else self._not_zero(node, source)

    def _binary(self, node: fx.Node, tensors: list[Labelled]) -> Labelled:
        """Tie what meets; an operand of size 1 along an axis is broadcast and ties nothing there.

        The result takes the labels of an operand that is not a literal zero, position by position.
        """
        shape = self._shape(node)
        if len(tensors) == 1:  # with a number
            return self._not_zero(node, tensors[0])
        ranked = [(1,) * (len(shape) - len(t.shape)) for t in tensors]
        sizes = [ones + t.shape for ones, t in zip(ranked, tensors, strict=True)]
        compacts = [
            t.compact.reshape(ones + tuple(t.compact.shape))
            for ones, t in zip(ranked, tensors, strict=True)
        ]
        # Broadcast over space (squeeze-excitation) is harmless; over an axis along which another
        # operand's channels lie it is one channel read by all of them: it has to stay.
        channel_axes = [
            axis for axis in range(len(shape)) if any(c.shape[axis] > 1 for c in compacts)
        ]
        wide = []
        for tensor, size, compact in zip(tensors, sizes, compacts, strict=True):
            if any(size[axis] == 1 for axis in channel_axes):
                self.labels.pin(tensor, "one channel broadcast over several")
            else:
                wide.append(compact)
        if not wide:
            return self._opaque_labels(node, "only broadcast operands")
        full: tuple[Tensor, ...] = torch.broadcast_tensors(*wide)  # type: ignore[no-untyped-call]
        for other in full[1:]:
            self.labels.tie(full[0].reshape(-1).numpy(), other.reshape(-1).numpy())
        result = full[0].clone()
        zero = torch.tensor(self.labels.zero)
        for other in full[1:]:
            result = torch.where(zero[result], other, result)
        return Labelled(Labelled.of(result).compact, shape)

    def _spatial(self, node: fx.Node, source: Labelled) -> Labelled:
        channels = source.vector(1)
        shape = self._shape(node)
        if channels is None or len(shape) < 2 or shape[1] != source.shape[1]:
            self.labels.refuse(node.name, "pools an axis along which channels lie", source)
            return self._opaque_labels(node, "pooled channels")
        return Labelled.along(channels, 1, shape)

    def _mean(self, node: fx.Node, source: Labelled) -> Labelled:
        given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        dims: Any = range(len(source.shape)) if given is None else given
        axes = {int(d) % len(source.shape) for d in ([dims] if isinstance(dims, int) else dims)}
        if axes & set(source.axes()):
            self.labels.refuse(node.name, "averages over channels", source)
            return self._opaque_labels(node, "averaged channels")
        keep = bool(node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False))
        kept = [size for axis, size in enumerate(source.compact.shape) if keep or axis not in axes]
        return Labelled(source.compact.reshape(kept), self._shape(node))

    def _size(self, node: fx.Node, source: Labelled) -> Any:
        """A size read off a cut axis would change with the cut: pin unless it is not such a one."""
        axes = source.axes()
        for axis in _axes_read(node, len(source.shape)):
            if axis in axes:
                reason = "its channel count is used as a number"
                self.labels.refuse(node.name, reason, source)
                break
        return self.values[node.name]

    def _move(self, node: fx.Node, module: nn.Module | None) -> Any:
        from polarprune.graph.movement import move_labels

        return move_labels(self, node, module)

    def tie_shared_layers(self) -> None:
        """A layer called twice is sliced once: its calls tie position by position."""
        first: dict[str, Mix] = {}
        for mix in self.labels.mixes:
            twin = first.setdefault(mix.layer, mix)
            if twin is not mix:
                self.labels.tie(twin.inputs, mix.inputs)
                self.labels.tie(twin.outputs, mix.outputs)

    def pin_shared_weights(self) -> None:
        """Different layers that own one weight tensor: slicing each would part them."""
        owner: dict[int, str] = {}
        shared: dict[str, str] = {}
        for layer in {*(m.layer for m in self.labels.mixes), *self.labels.norms}:
            for parameter in self.root.get_submodule(layer).parameters(recurse=False):
                other = owner.setdefault(id(parameter), layer)
                if other != layer:
                    shared |= {layer: other, other: layer}
        for layer in sorted(shared):
            reason = f"shares a weight with {shared[layer]}"
            self.labels.refused.append((layer, reason))
            for mix in self.labels.mixes:
                if mix.layer == layer:
                    self.labels.pin(np.concatenate([mix.inputs, mix.outputs]), reason)
            if layer in self.labels.norms:
                self.labels.pin(self.labels.norms[layer], reason)


def _target_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")


def _reads_shape(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and node.target is getattr
        and len(node.args) == 2
        and node.args[1] in ("shape", "dtype", "device", "ndim")
    )


def _axes_read(node: fx.Node, rank: int) -> list[int]:
    """The axes whose sizes are used, as far as the graph shows; all of them where it does not."""
    if node.op == "call_method" and len(node.args) > 1 and isinstance(node.args[1], int):
        return [node.args[1] % rank]
    if node.target is getattr and node.args[1] in ("dtype", "device", "ndim"):
        return []
    if node.op == "call_method" and node.target == "dim":
        return []
    axes: list[int] = []
    for user in node.users:
        index = user.args[1] if len(user.args) > 1 else None
        if getattr(user.target, "__name__", "") != "getitem" or not isinstance(index, int):
            return list(range(rank))
        axes.append(index % rank)
    return axes
