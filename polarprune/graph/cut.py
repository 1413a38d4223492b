"""Fourth stage: take closed blocks and channels out of a graph, physically.

Blocks first: the addition is replaced by its shortcut and the branch dies. Then channels: every
layer keeps its open positions. What is then read by nobody, or holds nothing but literal zeros, is
cut too, until nothing changes. The result computes exactly what the frozen gated network computed.
"""

import copy
from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx, nn

from polarprune.graph.channel_cut import cut_channels
from polarprune.graph.clean_up import clean_up, drop_unused
from polarprune.graph.dead_code import drop_dead
from polarprune.graph.label_pass import label_graph
from polarprune.graph.labels import Labels, Owner
from polarprune.graph.sites import Analysis, example_like
from polarprune.graph.slicing import LayerSlicer, Origin

__all__ = ["Cut", "Origin", "cut_graph"]


@dataclass(frozen=True)
class Cut:
    """A smaller network and where each of its tensors comes from."""

    graph_module: fx.GraphModule
    origins: dict[str, Origin]


def cut_graph(
    graph_module: fx.GraphModule,
    analysis: Analysis,
    decisions: dict[str, Tensor],
    shared_with: nn.Module | None = None,
) -> Cut:
    """The network that is left when everything closed is removed.

    Args:
        graph_module: the normalised graph, which becomes the smaller network.
        analysis: of that graph.
        shared_with: a network whose layers the graph calls; it is left unmodified.
        decisions: per site a bool tensor (units,), True = open; sites left out are open.

    Exactness: equal to the frozen gated network up to rounding, in both modes.
    """
    names = {name for name, _ in graph_module.named_parameters(remove_duplicate=False)}
    names |= {name for name, _ in graph_module.named_buffers(remove_duplicate=False)}
    origins = {name: Origin(name, {}) for name in names}
    slicer = LayerSlicer(graph_module, origins)
    changed = _leave_out_blocks(graph_module, analysis, decisions)
    changed |= clean_up(graph_module)
    closed = _closed_positions(analysis, decisions)
    labels: Labels | None = None if changed else analysis.labels
    while True:
        if labels is None:
            labels = label_graph(graph_module, example_like(graph_module, analysis.input_shape))
        dead = _dead_labels(labels, closed)
        if not dead.any():
            break
        before = _sources_of_labels(graph_module)
        cut_channels(graph_module, labels, dead, slicer)
        clean_up(graph_module)
        if _sources_of_labels(graph_module) == before:
            break  # whatever wrote or read a channel that is left still does
        closed, labels = {}, None
    slicer.materialise()
    drop_unused(graph_module)
    if shared_with is not None:
        _own_tensors(graph_module, shared_with)
    graph_module.graph.lint()
    graph_module = fx.GraphModule(graph_module, graph_module.graph)
    left = dict(graph_module.named_parameters()) | dict(graph_module.named_buffers())
    return Cut(graph_module, {name: origins[name] for name in left if name in origins})


def _sources_of_labels(graph_module: fx.GraphModule) -> set[str]:
    """The nodes with tensors of their own: layers and parameters."""
    graph = graph_module.graph
    return {node.name for node in graph.nodes if node.op in ("call_module", "get_attr")}


def _own_tensors(graph_module: fx.GraphModule, plain: nn.Module) -> None:
    """Copy what is still shared with the network that was cut; what was shared inside stays so."""
    theirs = {id(module) for module in plain.modules()}
    tensors = {id(tensor) for tensor in (*plain.parameters(), *plain.buffers())}
    memo: dict[int, object] = {}
    layers = {str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"}
    for layer in sorted(layers):
        module = graph_module.get_submodule(layer)
        if id(module) in theirs:
            parent, _, child = layer.rpartition(".")
            setattr(graph_module.get_submodule(parent), child, copy.deepcopy(module, memo))
    for module in graph_module.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if id(tensor) in tensors:
                    held[name] = copy.deepcopy(tensor, memo)  # type: ignore[assignment]


def _leave_out_blocks(
    graph_module: fx.GraphModule, analysis: Analysis, decisions: dict[str, Tensor]
) -> bool:
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
    drop_dead(graph_module.graph)
    return bool(stand_in)


def _closed_positions(analysis: Analysis, decisions: dict[str, Tensor]) -> dict[Owner, np.ndarray]:
    """Per owner of labels: which positions are closed; owners without any are left out."""
    roots = np.zeros(analysis.labels.count, dtype=bool)
    for site, classes in zip(analysis.sites, analysis.classes, strict=True):
        decision = decisions.get(site.name)
        if site.kind == "channel" and decision is not None:
            roots[classes[~decision.cpu().numpy()]] = True
    shut = roots[analysis.labels.roots]
    owners = analysis.labels.owners
    return {owner: shut[start:stop] for owner, start, stop in owners if shut[start:stop].any()}


def _dead_labels(labels: Labels, closed: dict[Owner, np.ndarray]) -> np.ndarray:
    """Per label: closed, read by no mixing operator, or never anything but a literal zero."""
    count = labels.count
    read = np.zeros(count, dtype=bool)
    written = np.zeros(count, dtype=bool)
    shut = np.zeros(count, dtype=bool)
    for mix in labels.mixes:
        if not mix.only_ties:
            read[labels.roots[mix.inputs]] = True
    written[labels.roots[np.flatnonzero(labels.written)]] = True
    for owner, start, stop in labels.owners if closed else ():
        if owner in closed:
            own, positions = labels.roots[start:stop], np.flatnonzero(closed[owner])
            shut[own[positions[positions < len(own)]]] = True
    dead_roots = shut | ~read | ~written
    dead_roots[list(labels.pinned_roots())] = False
    dead: np.ndarray = dead_roots[labels.roots]
    return dead
