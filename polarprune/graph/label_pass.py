"""Second stage, the pass: give every channel of every tensor a label, and see where labels go.

Operators that only move data run *on the labels* (movement.py); those that combine channels make
new labels; additions and products tie the labels they bring together; what is not understood pins
the labels it meets.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from polarprune.graph.labels import Labelled, Labels, Mix
from polarprune.graph.movement import move_labels, split_axis
from polarprune.graph.operators import (
    Family,
    argument,
    family_of,
    fed_by_the_image,
    keeps_zero,
    layer_type,
    module_of,
    operator_name,
    takes_rank,
)
from polarprune.graph.shapes import Values, run_for_values
from polarprune.graph.shared_weights import pin_shared_weights

# Binary operators that make a zero of two zeros, and of a zero and anything.
_ZERO_OF_ZEROS = frozenset({"add", "sub", "mul", "maximum", "minimum"})
_ZERO_OF_ONE = frozenset({"mul"})


def label_graph(
    graph_module: fx.GraphModule, example_input: Tensor, values: Values | None = None
) -> Labels:
    """Label every tensor of a normalised graph.

    Args:
        example_input: (n, ...); one evaluation-mode forward without arithmetic gives the shapes.
        values: what run_for_values says of this graph, where that is known already.
    """
    if values is None:
        values = run_for_values(graph_module, example_input)
    pass_ = LabelPass(graph_module, values)
    for node in graph_module.graph.nodes:
        pass_.visit(node)
    pass_.tie_shared_layers()
    pin_shared_weights(pass_)
    pass_.labels.solve()
    pass_.pin_groups_with_zeros()
    return pass_.labels


class LabelPass:
    """Visits the nodes in order; one rule a family of operators."""

    def __init__(self, graph_module: fx.GraphModule, values: Values) -> None:
        """Start with no labels; `values` are those of run_for_values."""
        self.root = graph_module
        self.values = values
        self.labels = Labels()
        self.env: dict[fx.Node, Any] = {}
        self.cut_with_labels: set[fx.Node] = set()  # calls of layers that are sliced as labels say
        self.fed = fed_by_the_image(graph_module.graph)
        self.rules: dict[Family, Callable[[fx.Node, Any], Any]] = {
            Family.MIX: self._mix,
            Family.PER_CHANNEL: self._per_channel,
            Family.ELEMENTWISE: self._elementwise,
            Family.BINARY: self._binary,
            Family.SPATIAL: self._spatial,
            Family.REDUCE: self._reduce,
            Family.NORMALISE: self._normalise,
            Family.NORM_OVER_CHANNELS: self._norm_over_channels,
            Family.MOVE: self._move,
        }

    def visit(self, node: fx.Node) -> None:
        """Label what one node gives."""
        value = self._apply(node)
        self.env[node] = value
        if isinstance(value, Labelled):
            self.labels.tensors[node.name] = value

    def _apply(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.opaque(node, "network input")
        if node.op == "get_attr":
            return self._parameter(node)
        if node.op == "output":
            for tensor in self.inputs(node):
                self.labels.pin(tensor, "network output", node.name)
            return None
        if not self.inputs(node):  # arithmetic on sizes, or a tensor made from them
            return self.opaque(node, "made from numbers, not from channels")
        module = module_of(self.root, node)
        whole = self.env[node.all_input_nodes[0]]
        if node.target is operator.getitem and isinstance(whole, tuple | list):
            return self._part(node)
        family = family_of(node, module)
        if family is Family.SIZE:
            return self._size(node)
        several = any(isinstance(self.env[n], tuple | list) for n in node.all_input_nodes)
        one = isinstance(self.values[node.name], Tensor)
        if several or not (one or family is Family.MOVE):
            return self.unknown(node)  # several results: a pool that returns indices
        rule = self.rules.get(family)
        return self.unknown(node) if rule is None else rule(node, module)

    def inputs(self, node: fx.Node) -> list[Labelled]:
        """The tensors that a node reads, those inside of tuples included."""
        leaves = pytree.tree_leaves([self.env[n] for n in node.all_input_nodes])
        return [leaf for leaf in leaves if isinstance(leaf, Labelled)]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a node's result."""
        return tuple(self.values[node.name].shape)

    def opaque(self, node: fx.Node, reason: str) -> Any:
        """Pinned labels for what cannot be told apart or cut; numbers stay as they are."""
        return pytree.tree_map_only(
            Tensor, lambda t: self._opaque_tensor(node, t, reason), self.values[node.name]
        )

    def _opaque_tensor(self, node: fx.Node, tensor: Tensor, reason: str) -> Labelled:
        label = self.labels.new(node.name, "opaque", 1)
        self.labels.pin(label, reason, node.name)
        return Labelled(label, None, tuple(tensor.shape))

    def refuse(self, node: fx.Node, reason: str) -> Any:
        """Pin what a node reads, say why, and go on with a pinned result."""
        self.labels.refuse(node.name, reason, *self.inputs(node))
        return self.opaque(node, reason)

    def unknown(self, node: fx.Node) -> Any:
        """An operator that no rule knows: poison."""
        module = module_of(self.root, node)
        name = type(module).__name__ if module is not None else operator_name(node)
        return self.refuse(node, f"operator {name} is not known to keep channels apart")

    def _part(self, node: fx.Node) -> Any:
        """One of several results."""
        whole = self.env[node.all_input_nodes[0]]
        index = node.args[1]
        if not isinstance(index, int):
            return self.unknown(node)
        part = whole[index]
        source = node.all_input_nodes[0]
        if isinstance(part, Labelled) and source.name in self.labels.parts:
            axis = split_axis(source, len(part.shape))
            starts = [0, *np.cumsum([p.shape[axis] for p in whole]).tolist()]
            place = index % len(whole)
            origin = source.all_input_nodes[0].name
            self.labels.parts[node.name] = (origin, starts[place], starts[place + 1])
        return part

    def _parameter(self, node: fx.Node) -> Any:
        value = self.values[node.name]
        if not isinstance(value, Tensor):
            return value
        if str(node.target) in self.labels.parameters:  # read before: one tensor, one cut
            return self.labels.parameters[str(node.target)]
        wide = [axis for axis, size in enumerate(value.shape) if size > 1]
        if len(wide) != 1:
            return self.opaque(node, "parameter that varies along several axes")
        fresh = self.labels.new(str(node.target), "parameter", value.shape[wide[0]])
        labelled = Labelled.along(fresh, wide[0], tuple(value.shape))
        self.labels.parameters[str(node.target)] = labelled
        return labelled

    def _mix(self, node: fx.Node, module: nn.Module) -> Any:
        """Case 1: dense: new labels. Case 2: grouped: all of a group tied, in and out."""
        source = self.env[node.all_input_nodes[0]]
        shape = self.shape(node)
        if not takes_rank(node, module, len(source.shape)):
            return self.refuse(node, "an unbatched input")
        if node.all_input_nodes[0] not in self.fed:
            return self.refuse(node, "reads nothing that depends on the image")
        axis = len(shape) - 1 if layer_type(module) is nn.Linear else 1
        layer = str(node.target)
        outputs = self.labels.new(layer, "out", shape[axis])
        inputs = source.vector(axis)
        if inputs is None:
            reason = "its input channels are not laid along one axis"
            self.labels.refuse(node.name, reason, source)
            inputs = np.repeat(self.labels.new(layer, "in", 1), source.shape[axis])
            self.labels.pin(inputs, reason, node.name)
        groups = int(getattr(module, "groups", 1))
        if groups > 1:
            first_in, first_out = inputs.reshape(groups, -1), outputs.reshape(groups, -1)
            for others in (first_in, first_out):
                self.labels.tie(np.repeat(first_in[:, :1], others.shape[1], axis=1), others)
        self.cut_with_labels.add(node)
        source_name = node.all_input_nodes[0].name
        self.labels.mixes.append(Mix(node.name, source_name, layer, groups, axis, inputs, outputs))
        return Labelled.along(outputs, axis, shape)

    def _per_channel(self, node: fx.Node, module: nn.Module) -> Labelled:
        source: Labelled = self.env[node.all_input_nodes[0]]
        batched = takes_rank(node, module, len(source.shape))
        channels = source.vector(1) if len(source.shape) > 1 and batched else None
        if channels is None:
            self.labels.refuse(node.name, "normalised values are not laid along axis 1", source)
            return source
        self.cut_with_labels.add(node)
        layer = str(node.target)
        if layer in self.labels.norms:
            self.labels.tie(self.labels.norms[layer], channels)
        self.labels.norms[layer] = channels
        return source if keeps_zero(node, module) else self.not_zero(node, source)

    def not_zero(self, node: fx.Node, source: Labelled) -> Labelled:
        """Literal zeros become other values here: labels of their own, tied to the old ones."""
        self.labels.makers.append((node.name, source.ids))
        zero = self.labels.is_zero(source.ids)
        if not zero.any():
            return source
        fresh = source.ids.copy()
        fresh[zero] = self.labels.new(node.name, "from_zero", int(zero.sum()))
        self.labels.tie(source.ids, fresh)
        return Labelled(fresh, source.axis, source.shape)

    def _elementwise(self, node: fx.Node, module: nn.Module | None) -> Any:
        source: Labelled = self.env[node.all_input_nodes[0]]
        others = self.inputs(node)[1:]  # an exponent, a bound
        if any(max(other.shape, default=1) > 1 for other in others):
            return self.refuse(node, "an element-wise operator with several tensors")
        if others:
            self.labels.pin(
                np.concatenate([other.ids for other in others]), "one number", node.name
            )
            return self.not_zero(node, source)
        return source if keeps_zero(node, module) else self.not_zero(node, source)

    def _binary(self, node: fx.Node, module: nn.Module | None) -> Any:
        """Tie what meets; an operand of size 1 along an axis is broadcast and ties nothing there.

        The result takes the labels of an operand that is not a literal zero, position by position.
        """
        tensors = self.inputs(node)
        shape = self.shape(node)
        if len(tensors) == 1:  # with a number
            return self.not_zero(node, tensors[0])
        axes = {t.axis + len(shape) - len(t.shape) for t in tensors if t.axis is not None}
        if len(axes) > 1:
            return self.refuse(node, "operands whose channels lie along different axes")
        axis = next(iter(axes)) if axes else None
        meeting = []
        keeps = operator_name(node) in _ZERO_OF_ZEROS
        for tensor in tensors:
            own = None if axis is None else axis - len(shape) + len(tensor.shape)
            if own is None:
                meeting.append(tensor.ids[:1])
            elif own < 0 or tensor.shape[own] == 1:
                # Broadcast over space (squeeze-excitation) is harmless; over the axis along which
                # another operand's channels lie it is one channel read by all: it has to stay.
                self.labels.pin(tensor, "one channel broadcast over several", node.name)
                keeps = keeps and operator_name(node) in _ZERO_OF_ONE  # nothing meets a zero here
            else:
                vector = tensor.vector(own)
                assert vector is not None
                meeting.append(vector)
        result = Labelled(self.meet(meeting), axis, shape)
        return result if keeps else self.not_zero(node, result)

    def meet(self, vectors: list[np.ndarray]) -> np.ndarray:
        """Tie vectors position by position; at each the first label that is no literal zero."""
        result = vectors[0]
        for other in vectors[1:]:
            self.labels.tie(vectors[0], other)
            if self.labels.zeros:
                result = np.where(self.labels.is_zero(result), other, result)
        return result

    def _spatial(self, node: fx.Node, module: nn.Module | None) -> Any:
        source: Labelled = self.env[node.all_input_nodes[0]]
        shape = self.shape(node)
        if not takes_rank(node, module, len(source.shape)):
            return self.refuse(node, "an unbatched input")
        whole = len(shape) == len(source.shape) > 2 and shape[1] == source.shape[1]
        if source.axis not in (None, 1) or not whole:
            return self.refuse(node, "pools an axis along which channels lie")
        padded = Labelled(source.ids, source.axis, shape)
        return self.not_zero(node, padded) if getattr(module, "value", 0) else padded

    def _reduce(self, node: fx.Node, module: nn.Module | None) -> Any:
        source: Labelled = self.env[node.all_input_nodes[0]]
        place = 2 if operator_name(node) == "norm" else 1
        given = argument(node, place, "dim")
        rank = len(source.shape)
        dims = range(rank) if given is None else [given] if isinstance(given, int) else given
        axes = {int(d) % rank for d in dims}
        if source.axis in axes:
            return self.refuse(node, "reduces over channels")
        shape = self.shape(node)
        axis = source.axis
        if axis is not None and len(shape) < rank:
            axis -= sum(a < axis for a in axes)
        return Labelled(source.ids, axis, shape)

    def _normalise(self, node: fx.Node, module: nn.Module | None) -> Any:
        source: Labelled = self.env[node.all_input_nodes[0]]
        normalize = operator_name(node) == "normalize"
        dim = getattr(module, "dim", None)
        if module is None:
            dim = argument(node, 2 if normalize else 1, "dim", 1 if normalize else None)
        if not isinstance(dim, int) or source.axis == dim % len(source.shape):
            return self.refuse(node, "normalises over channels")
        return source if normalize else self.not_zero(node, source)

    def _norm_over_channels(self, node: fx.Node, module: nn.Module) -> Any:
        source: Labelled = self.env[node.all_input_nodes[0]]
        kind = type(module).__name__
        if isinstance(module, nn.GroupNorm):
            reached = source.axis in (None, 1)
        else:
            normalised = len(getattr(module, "normalized_shape", ()))
            reached = source.axis is None or source.axis >= len(source.shape) - normalised
        if reached:
            self.labels.refuse(node.name, f"{kind} normalises over channels", source)
            return source
        return self.not_zero(node, source)

    def _size(self, node: fx.Node) -> Any:
        """Sizes that a cut changes are put right by the cut (cut.py); here they are numbers."""
        return self.values[node.name]

    def _move(self, node: fx.Node, module: nn.Module | None) -> Any:
        return move_labels(self, node, module)

    def tie_shared_layers(self) -> None:
        """A layer called twice is sliced once: its calls tie position by position."""
        first: dict[str, Mix] = {}
        for mix in self.labels.mixes:
            twin = first.setdefault(mix.layer, mix)
            if twin is not mix:
                self.labels.tie(twin.inputs, mix.inputs)
                self.labels.tie(twin.outputs, mix.outputs)

    def pin_groups_with_zeros(self) -> None:
        """Padded zeros inside of a convolution's groups: that convolution is not cut.

        Cut to one group it would be a dense one, and the zeros would go too: of all its channels
        some would then cost nothing, depending on how many groups are left.
        """
        zero = np.zeros(self.labels.count, dtype=bool)
        if self.labels.zeros:
            zero[self.labels.roots[np.concatenate(self.labels.zeros)]] = True
        for mix in self.labels.mixes:
            wide = mix.only_ties and not mix.depthwise
            if wide and zero[self.labels.roots[mix.inputs]].any():
                reason = "padded zeros are part of its groups"
                self.labels.refused.append((mix.node, reason))
                self.labels.pin(np.concatenate([mix.inputs, mix.outputs]), reason, mix.node)
