"""Second stage, part: weights that a cut of one layer would change for somebody else."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, fx, nn

from polarprune.graph.operators import attribute_of, module_of, reads_attribute

if TYPE_CHECKING:
    from polarprune.graph.label_pass import LabelPass


def pin_shared_weights(pass_: "LabelPass") -> None:
    """Different layers that own one weight tensor: slicing each would part them.

    The same holds for a weight that the graph reads beside the layer, or calls in a way that
    labels do not follow.
    """
    root, labels = pass_.root, pass_.labels
    owner: dict[int, str] = {}
    shared: dict[str, str] = {}
    for node in root.graph.nodes:
        if node.op == "get_attr" and not all(_asks_for_type(user) for user in node.users):
            owner.setdefault(id(attribute_of(root, node)), f"the graph ({node.name})")
        elif node.op == "call_module" and node not in pass_.cut_with_labels:
            for parameter in _parameters(module_of(root, node)):
                owner.setdefault(id(parameter), f"the graph ({node.name})")
    for layer in dict.fromkeys([*(m.layer for m in labels.mixes), *labels.norms]):
        for parameter in root.get_submodule(layer).parameters():
            other = owner.setdefault(id(parameter), layer)
            if other != layer:
                shared |= {layer: other, other: layer}
    sliced = {mix.layer for mix in labels.mixes} | labels.norms.keys()
    for layer in sorted(shared.keys() & sliced):
        reason = f"shares a weight with {shared[layer]}"
        labels.refused.append((layer, reason))
        for name in _read_directly(pass_, layer):
            labels.pin(labels.tensors[name], reason)
        for mix in labels.mixes:
            if mix.layer == layer:
                labels.pin(np.concatenate([mix.inputs, mix.outputs]), reason)
        if layer in labels.norms:
            labels.pin(labels.norms[layer], reason)


def _parameters(module: nn.Module | None) -> list[Tensor]:
    """Those of a layer; most have none, and asking torch takes longer."""
    bare = module is None or not (module._parameters or module._modules)
    return [] if bare or module is None else list(module.parameters())


def _read_directly(pass_: "LabelPass", layer: str) -> list[str]:
    """The nodes that read a parameter of a layer."""
    own = {id(parameter) for parameter in pass_.root.get_submodule(layer).parameters()}
    nodes = [node for node in pass_.root.graph.nodes if node.op == "get_attr"]
    nodes = [node for node in nodes if node.name in pass_.labels.tensors]
    return [node.name for node in nodes if id(attribute_of(pass_.root, node)) in own]


def _asks_for_type(node: fx.Node) -> bool:
    """Whether a node only reads a tensor's dtype or device."""
    return reads_attribute(node) and node.args[1] in ("dtype", "device")
