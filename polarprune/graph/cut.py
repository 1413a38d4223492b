"""Fourth stage: take closed blocks and channels out of a graph, physically.

Blocks first: the addition is replaced by its shortcut and the branch dies. Then channels: every
layer keeps its open positions. What is then read by nobody, or holds nothing but literal zeros, is
cut too, until nothing changes. The result computes exactly what the frozen gated network computed.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from polarprune.errors import Refused
from polarprune.graph.clean_up import clean_up
from polarprune.graph.label_pass import label_graph
from polarprune.graph.labels import Key, Labels, Mix
from polarprune.graph.layers import layer_arguments
from polarprune.graph.movement import pad_amounts, view_sizes
from polarprune.graph.operators import NORM_MODULES, TRANSPOSED, module_of
from polarprune.graph.sites import Analysis, example_like


@dataclass(frozen=True)
class Origin:
    """Where a parameter or buffer of the small network comes from.

    `kept` maps an axis to the indices that were kept of the old tensor, in order.
    """

    name: str
    kept: dict[int, Tensor]

    def slice(self, old: Tensor) -> Tensor:
        """The kept part of a tensor of the old shape (a weight, or optimizer state of it)."""
        for axis, indices in self.kept.items():
            old = old.index_select(axis, indices.to(old.device))
        return old

    def then(self, axis: int, indices: Tensor) -> "Origin":
        """This origin after a further cut along one axis."""
        earlier = self.kept.get(axis)
        return Origin(
            self.name, {**self.kept, axis: indices if earlier is None else earlier[indices]}
        )


@dataclass(frozen=True)
class Cut:
    """A smaller network and where each of its tensors comes from."""

    graph_module: fx.GraphModule
    origins: dict[str, Origin]


def cut_graph(plain: fx.GraphModule, analysis: Analysis, decisions: dict[str, Tensor]) -> Cut:
    """The network that is left when everything closed is removed.

    Args:
        plain: the normalised graph, left unmodified.
        analysis: of that graph.
        decisions: per site a bool tensor (units,), True = open; sites left out are open.

    Exactness: equal to the frozen gated network up to rounding, in both modes.
    """
    graph_module = copy.deepcopy(plain)
    names = {name for name, _ in graph_module.named_parameters()}
    names |= {name for name, _ in graph_module.named_buffers()}
    origins = {name: Origin(name, {}) for name in names}
    _leave_out_blocks(graph_module, analysis, decisions)
    clean_up(graph_module)
    closed = _closed_keys(analysis, decisions)
    while True:
        labels = label_graph(graph_module, example_like(graph_module, analysis.input_shape))
        dead = _dead_labels(labels, closed)
        if not dead.any():
            break
        _Cutter(graph_module, labels, dead, origins).cut()
        clean_up(graph_module)
        closed = set()
    left = dict(graph_module.named_parameters()) | dict(graph_module.named_buffers())
    return Cut(graph_module, {name: origins[name] for name in left})


def _leave_out_blocks(
    graph_module: fx.GraphModule, analysis: Analysis, decisions: dict[str, Tensor]
) -> None:
    nodes = {node.name: node for node in graph_module.graph.nodes}
    stand_in: dict[str, fx.Node] = {}
    for place, block in analysis.additions.items():
        decision = decisions.get(analysis.sites[place].name)
        if decision is None or bool(decision[0]):
            continue
        # The shortcut may itself be the addition of a block that has gone before.
        shortcut = stand_in.get(block.shortcut, nodes[block.shortcut])
        nodes[block.addition].replace_all_uses_with(shortcut)
        stand_in[block.addition] = shortcut
    graph_module.graph.eliminate_dead_code()


def _closed_keys(analysis: Analysis, decisions: dict[str, Tensor]) -> set[Key]:
    roots: set[int] = set()
    for site, classes in zip(analysis.sites, analysis.classes, strict=True):
        decision = decisions.get(site.name)
        if site.kind == "channel" and decision is not None:
            roots |= set(classes[~decision.cpu().numpy()].tolist())
    return {
        key
        for key, root in zip(analysis.labels.keys, analysis.labels.roots.tolist(), strict=True)
        if root in roots
    }


def _dead_labels(labels: Labels, closed: set[Key]) -> np.ndarray:
    """Per label: closed, read by no mixing operator, or never anything but a literal zero."""
    count = len(labels.keys)
    read = np.zeros(count, dtype=bool)
    written = np.zeros(count, dtype=bool)
    shut = np.zeros(count, dtype=bool)
    for mix in labels.mixes:
        if not mix.depthwise:
            read[labels.roots[mix.inputs]] = True
    written[labels.roots[np.flatnonzero(labels.written)]] = True
    for label, key in enumerate(labels.keys):
        if key in closed:
            shut[labels.roots[label]] = True
    dead_roots = shut | ~read | ~written
    for root in labels.pinned_roots():
        dead_roots[root] = False
    dead: np.ndarray = dead_roots[labels.roots]
    return dead


class _Cutter:
    """Slices every layer of one graph to its live labels, in place."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        labels: Labels,
        dead: np.ndarray,
        origins: dict[str, Origin],
    ) -> None:
        self.root = graph_module
        self.labels = labels
        self.dead = dead
        self.origins = origins

    def cut(self) -> None:
        self._drop_empty_tensors()
        nodes = {node.name for node in self.root.graph.nodes}
        done: set[str] = set()
        for mix in self.labels.mixes:
            if mix.node in nodes and mix.layer not in done:
                done.add(mix.layer)
                self._slice_mix(mix)
        live_layers = {str(n.target) for n in self.root.graph.nodes if n.op == "call_module"}
        for layer, channels in self.labels.norms.items():
            if layer in live_layers:
                self._slice_norm(layer, self._kept(channels))
        for node in list(self.root.graph.nodes):
            if node.op == "get_attr" and str(node.target) in self.labels.parameters:
                self._slice_parameter(str(node.target))
            elif node.op == "call_function" and node.target is F.pad:
                self._narrow_pad(node)
            elif node.target in ("view", "reshape", torch.reshape):
                self._narrow_view(node)
        self.root.recompile()

    def _kept(self, labels: np.ndarray) -> Tensor:
        return torch.from_numpy(np.flatnonzero(~self.dead[labels]))

    def _is_empty(self, node: fx.Node) -> bool:
        tensor = self.labels.tensors.get(node.name)
        return tensor is not None and bool(self.dead[tensor.compact.reshape(-1).numpy()].all())

    def _drop_empty_tensors(self) -> None:
        """A tensor without a channel left leaves a concatenation; elsewhere it has no live user."""
        for node in self.root.graph.nodes:
            if node.op == "call_function" and node.target is torch.cat and not self._is_empty(node):
                operands = node.args[0]
                assert isinstance(operands, tuple | list)
                kept = [n for n in operands if isinstance(n, fx.Node) and not self._is_empty(n)]
                node.args = (kept, *node.args[1:])
        self.root.graph.eliminate_dead_code()
        for node in self.root.graph.nodes:
            if self._is_empty(node):
                raise Refused(f"{node.name} would be left without a channel; keep one open")

    def _slice_mix(self, mix: Mix) -> None:
        module = self.root.get_submodule(mix.layer)
        kept_in, kept_out = self._kept(mix.inputs), self._kept(mix.outputs)
        if len(kept_in) == len(mix.inputs) and len(kept_out) == len(mix.outputs):
            return
        arguments = layer_arguments(module)
        linear = isinstance(module, nn.Linear)
        arguments["in_features" if linear else "in_channels"] = len(kept_in)
        arguments["out_features" if linear else "out_channels"] = len(kept_out)
        axes = {0: kept_out, 1: kept_in}
        if mix.groups > 1:
            # Whole groups go, so the axis inside a group keeps its length.
            arguments["groups"] = len(kept_in) * mix.groups // len(mix.inputs)
            axes = {0: kept_in if isinstance(module, TRANSPOSED) else kept_out}
        elif isinstance(module, TRANSPOSED):
            axes = {0: kept_in, 1: kept_out}
        self._replace(mix.layer, arguments, {"weight": axes, "bias": {0: kept_out}})

    def _slice_norm(self, layer: str, kept: Tensor) -> None:
        module = self.root.get_submodule(layer)
        assert isinstance(module, NORM_MODULES)
        if len(kept) == module.num_features:
            return
        arguments = {**layer_arguments(module), "num_features": len(kept)}
        names = ("weight", "bias", "running_mean", "running_var")
        self._replace(layer, arguments, {name: {0: kept} for name in names})

    def _replace(
        self, layer: str, arguments: dict[str, object], axes: dict[str, dict[int, Tensor]]
    ) -> None:
        """Put a smaller layer of the same type in place, with the kept part of every tensor."""
        old = self.root.get_submodule(layer)
        new = type(old)(**arguments)
        values = {**dict(old.named_parameters()), **dict(old.named_buffers())}
        for name, value in values.items():
            kept = axes.get(name, {})
            full = f"{layer}.{name}"
            for axis, indices in kept.items():
                self.origins[full] = self.origins[full].then(axis, indices)
            sliced = Origin(full, kept).slice(value.detach()).clone()
            if isinstance(value, nn.Parameter):
                setattr(new, name, nn.Parameter(sliced, requires_grad=value.requires_grad))
            else:
                setattr(new, name, sliced)
        new.train(old.training)
        parent, _, child = layer.rpartition(".")
        setattr(self.root.get_submodule(parent), child, new)

    def _slice_parameter(self, name: str) -> None:
        labels = self.labels.parameters[name]
        axis = labels.axes()[0]
        vector = labels.vector(axis)
        assert vector is not None
        kept = self._kept(vector)
        owner, _, child = name.rpartition(".")
        module = self.root.get_submodule(owner)
        old = getattr(module, child)
        if len(kept) == old.shape[axis]:
            return
        self.origins[name] = self.origins[name].then(axis, kept)
        sliced = old.detach().index_select(axis, kept.to(old.device)).clone()
        if isinstance(old, nn.Parameter):
            setattr(module, child, nn.Parameter(sliced, requires_grad=old.requires_grad))
        else:
            setattr(module, child, sliced)

    def _narrow_pad(self, node: fx.Node) -> None:
        """Fewer padded channels: the zeros that are left before and after the source's channels."""
        if node.name not in self.labels.tensors:
            return
        channels = self.labels.tensors[node.name].vector(1)
        source = self.labels.tensors[node.all_input_nodes[0].name]
        amounts = list(pad_amounts(node))
        place = 2 * (len(source.shape) - 2)
        if channels is None or len(amounts) < place + 2:
            return
        before, after = amounts[place : place + 2]
        amounts[place] = len(self._kept(channels[:before]))
        amounts[place + 1] = len(self._kept(channels[len(channels) - after :]))
        node.args = (node.args[0], tuple(amounts), *node.args[2:])
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "pad"}

    def _narrow_view(self, node: fx.Node) -> None:
        """A size written as a number along the channel axis becomes the kept count."""
        labelled = self.labels.tensors.get(node.name)
        if labelled is None or not labelled.axes():
            return
        axis = labelled.axes()[0]
        vector = labelled.vector(axis)
        assert vector is not None
        sizes = list(view_sizes(node))
        if isinstance(sizes[axis], int) and sizes[axis] > 0:
            sizes[axis] = len(self._kept(vector))
            node.args = (node.args[0], tuple(sizes))


def layer_types(graph_module: fx.GraphModule) -> set[str]:
    """Names of the layer types that a graph calls."""
    modules = [module_of(graph_module, node) for node in graph_module.graph.nodes]
    return {type(module).__name__ for module in modules if module is not None}
