"""Normalisations and scales of single channels folded into the mixing layers next to them.

With the running statistics m, v and the affine part a, b of a normalisation, and s = a / sqrt(v +
eps), the layer y = W x + c followed by the normalisation is y = (s W) x + (s (c - m) + b); a layer
scale, an affine layer, a bias added later are the same with other numbers. This is done here, in
float64, so that the exported weights do not depend on the exporter's own optimiser, and so that a
cast to a lower precision comes after it.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from polarprune.graph.operator_tables import DROPOUT_MODULES
from polarprune_export.channel_maps import (
    NORMS,
    Candidate,
    ChannelMap,
    ChannelMaps,
    NotPerChannel,
)
from polarprune_export.layer_weights import (
    CONVOLUTIONS,
    MIXING,
    TRANSPOSED,
    LayerWeights,
    channel_axis,
    reason_against_shift,
)

__all__ = ["CONVOLUTIONS", "NORMS", "TRANSPOSED", "Unfolded", "fold_batchnorms"]

# In evaluation mode these hand their input on; between a convolution and a norm they hide the pair.
PASS_THROUGH = (nn.Identity, *DROPOUT_MODULES)


@dataclass(frozen=True)
class Unfolded:
    """A normalisation or a scale next to a mixing layer that was left where it is, and why."""

    norm: str
    layer: str
    reason: str


def fold_batchnorms(
    net: fx.GraphModule, example_input: Tensor
) -> tuple[fx.GraphModule, list[Unfolded]]:
    """A copy in evaluation mode without the maps of single channels that a layer can take over.

    1. behind a convolution (grouped and transposed ones included) or a linear layer: a norm, a
       scale, a shift, in any number; permutations of the axes between them are seen through;
    2. in front of one that alone reads it: the same, with a shift only where no zeros are padded;
    3. refused, and listed: the layer's output is read elsewhere too, or is an output; the layer is
       called twice; the norm has no running statistics; the constant is more than one number a
       channel.

    Args:
        net: plain `torch.nn` layers; left unmodified.
        example_input: its shape says where the channels are.

    Exactness: rounding. The weights are computed in float64 and rounded once to the layer's dtype.
    """
    folded = copy.deepcopy(net).eval()
    _drop_pass_through(folded)
    with torch.no_grad():
        ShapeProp(folded).propagate(example_input)
    folding = _Folding(folded)
    with torch.no_grad():
        for node in list(folded.graph.nodes):
            folding.fold_behind(node)
        for node in reversed(list(folded.graph.nodes)):
            folding.fold_in_front(node)
        folding.weights.round_weights()
    _drop_unread(folded, folding.maps.constants)
    return folded, folding.unfolded


class _Folding:
    """One network's folds, node by node."""

    def __init__(self, net: fx.GraphModule) -> None:
        self.net = net
        self.maps = ChannelMaps(net)
        self.weights = LayerWeights()
        self.unfolded: list[Unfolded] = []
        self.calls: dict[str, int] = {}
        for node in net.graph.nodes:
            if node.op == "call_module":
                self.calls[str(node.target)] = self.calls.get(str(node.target), 0) + 1

    def fold_behind(self, node: fx.Node) -> None:
        """Into the layer that makes what the node reads."""
        found = self.maps.candidate(node)
        if found is None:
            return
        path, order = _path_to_layer(found.source)
        layer = self._layer(path[-1])
        if layer is None:
            return
        axis = order.index(channel_axis(layer, len(order)))
        reason = self._reason_behind(path)
        step = self._map(found, axis, path[-1], reason)
        if step is not None:
            self.weights.multiply_behind(layer, step)
            self._erase(found)

    def fold_in_front(self, node: fx.Node) -> None:
        """Into the layer that alone reads the node."""
        found = self.maps.candidate(node)
        if found is None or len(node.users) != 1:
            return
        (reader,) = node.users
        layer = self._layer(reader)
        if layer is None or reader.args[:1] != (node,):
            return
        axis = channel_axis(layer, len(node.meta["tensor_meta"].shape))
        reason = self._reason_called(reader)
        shifts = found.norm is not None or found.shift is not None
        reason = reason or (reason_against_shift(layer) if shifts else None)
        step = self._map(found, axis, reader, reason)
        if step is not None:
            self.weights.multiply_in_front(layer, step)
            self._erase(found)

    def _map(
        self, found: Candidate, axis: int, layer: fx.Node, reason: str | None
    ) -> ChannelMap | None:
        """The map to fold; where there is a reason against it, that goes on the list."""
        try:
            if reason is None:
                return self.maps.channel_map(found, axis)
        except NotPerChannel as error:
            reason = str(error)
        self.unfolded.append(Unfolded(found.name, str(layer.target), str(reason)))
        return None

    def _layer(self, node: fx.Node) -> nn.Module | None:
        """The mixing layer that a node calls; one that computes its own weight is none."""
        module = self.net.get_submodule(str(node.target)) if node.op == "call_module" else None
        return module if type(module) in MIXING else None

    def _reason_behind(self, path: list[fx.Node]) -> str | None:
        if any(len(node.users) > 1 for node in path):
            return "the layer's output is read elsewhere too"
        return self._reason_called(path[-1])

    def _reason_called(self, node: fx.Node) -> str | None:
        return "the layer is called more than once" if self.calls[str(node.target)] > 1 else None

    def _erase(self, found: Candidate) -> None:
        found.node.replace_all_uses_with(found.source)
        self.net.graph.erase_node(found.node)


def _path_to_layer(source: fx.Node) -> tuple[list[fx.Node], list[int]]:
    """The nodes from here back through permutations, and for each axis here the axis there."""
    path, order = [source], list(range(len(source.meta["tensor_meta"].shape)))
    while (permuted := _permutation(path[-1])) is not None:
        before, axes = permuted
        order = [axes[axis] for axis in order]
        path.append(before)
    return path, order


def _permutation(node: fx.Node) -> tuple[fx.Node, list[int]] | None:
    """What a node permutes, and for each of its axes the one that it was."""
    if node.target not in (torch.permute, "permute", torch.transpose, "transpose") or node.kwargs:
        return None
    arguments: tuple[Any, ...] = node.args
    before, axes = arguments[0], arguments[1:]
    if len(axes) == 1 and isinstance(axes[0], tuple | list):
        axes = tuple(axes[0])
    dims = len(before.meta["tensor_meta"].shape)
    if not all(isinstance(axis, int) for axis in axes):
        return None
    places = [axis % dims for axis in axes]
    if node.target in (torch.permute, "permute"):
        return before, places
    order = list(range(dims))
    first, second = places
    order[first], order[second] = second, first
    return before, order


def _drop_pass_through(net: fx.GraphModule) -> None:
    modules = dict(net.named_modules())
    for node in list(net.graph.nodes):
        if node.op == "call_module" and isinstance(modules[str(node.target)], PASS_THROUGH):
            node.replace_all_uses_with(node.args[0])
            net.graph.erase_node(node)


def _drop_unread(net: fx.GraphModule, constants: set[fx.Node]) -> None:
    """The norms and the constants that were folded, with what computed them."""
    for node in reversed(net.graph.nodes):
        if node in constants and not node.users:
            net.graph.erase_node(node)
    net.delete_all_unused_submodules()
    read = {str(node.target) for node in net.graph.nodes if node.op == "get_attr"}
    for name in [*dict(net.named_parameters()), *dict(net.named_buffers())]:
        if "." not in name and name not in read:
            delattr(net, name)
    net.graph.lint()
    net.recompile()
