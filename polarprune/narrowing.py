"""Cutting a gated network that goes on searching: closed units leave it, the other gates stay.

Sites, units and decisions keep the meaning that they had in the whole network. So every cut is made
from the shape of the whole network, with all decisions so far, and does not depend on the way; only
the numbers come from the network as it is.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from polarprune.errors import Refused
from polarprune.gate_insertion import Placement, Read, channel_axis
from polarprune.gating import GateState, PooledFeatures
from polarprune.graph.branches import branch_of
from polarprune.graph.cut import Cut, Origin, cut_graph
from polarprune.graph.inputs_left import inputs_left
from polarprune.graph.label_pass import label_graph
from polarprune.graph.labels import Labels
from polarprune.graph.operator_tables import TRANSPOSED
from polarprune.graph.operators import fed_by_the_image
from polarprune.graph.sites import Analysis, example_like
from polarprune.graph.tracing import Draft, copied_graph

Decisions = dict[str, Tensor]


class Shell:
    """The whole network without its numbers."""

    def __init__(self, plain: fx.GraphModule, analysis: Analysis) -> None:
        """Remember a network's shape.

        Args:
            plain: the whole network without gates; left unmodified.

        Raises:
            Refused: a weight is computed from others, or shared: what is left of it could not go on
                being trained as it was.
        """
        _refuse_derived(plain)
        self.analysis = analysis
        memo = {
            id(tensor): _without_numbers(tensor)
            for tensor in (*plain.parameters(), *plain.buffers())
        }
        self.net = copy.deepcopy(plain, memo)

    def cut(self, decisions: Decisions) -> Cut:
        """What these decisions leave of the whole network, on the meta device."""
        graph = copied_graph(self.net.graph)
        return cut_graph(Draft(self.net, graph), self.analysis, decisions, shared_with=self.net)


def _without_numbers(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _refuse_derived(plain: nn.Module) -> None:
    names: dict[int, str] = {}
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        if names.setdefault(id(parameter), name) != name:
            raise Refused(f"{names[id(parameter)]} and {name} are one tensor: cut them at the end")
    for name, module in plain.named_modules():
        if parametrize.is_parametrized(module):
            raise Refused(f"a weight of {name} is computed from others: cut it at the end")


def fill(cut: Cut, present: nn.Module, earlier: dict[str, Origin]) -> Cut:
    """Put the present numbers into a cut of the shell; its origins become those in `present`.

    Args:
        present: the network as it is, itself such a cut.
        earlier: where its tensors come from in the whole network.
    """
    old = dict(present.named_parameters()) | dict(present.named_buffers())
    modes = {name: module.training for name, module in present.named_modules()}
    origins = {
        name: _since(origin, earlier.get(name), old[name]) for name, origin in cut.origins.items()
    }
    for prefix, module in cut.graph_module.named_modules():
        module.training = modes.get(prefix, present.training)
        for held in (module._parameters, module._buffers):
            for child, tensor in held.items():
                if tensor is not None:
                    name = f"{prefix}.{child}" if prefix else child
                    held[child] = _numbers(origins[name], old[name], tensor)
    return Cut(cut.graph_module, origins)


def _since(origin: Origin, earlier: Origin | None, old: Tensor) -> Origin:
    """The part of the present tensor that a part of the whole one is."""
    kept = {}
    for axis in {*origin.kept, *(earlier.kept if earlier is not None else {})}:
        before = earlier.kept.get(axis) if earlier is not None else None
        if before is None:
            kept[axis] = origin.kept[axis]
            continue
        place = torch.full((int(before.max()) + 1,), -1)
        place[before] = torch.arange(len(before))
        wanted = origin.kept.get(axis)
        assert wanted is not None, "a cut of more decisions keeps less"
        kept[axis] = place[wanted]
        assert bool((kept[axis] >= 0).all()), "a cut of more decisions keeps less"
        assert len(before) == old.shape[axis]
    return Origin(origin.name, kept)


def _numbers(origin: Origin, old: Tensor, shape_of: Tensor) -> Tensor:
    sliced = origin.slice(old.detach())
    if not origin.kept:
        sliced = sliced.clone()
    assert sliced.shape == shape_of.shape
    if isinstance(old, nn.Parameter):
        return nn.Parameter(sliced, requires_grad=old.requires_grad)
    return sliced


def place_gates(
    small: fx.GraphModule,
    cut: Cut,
    analysis: Analysis,
    whole_graph: fx.Graph,
    state: GateState,
    usual: Callable[[str], Tensor],
) -> Placement:
    """Where the gates of the whole network's sites go in what is left of it.

    Args:
        small: the cut network, its graph without gates.
        cut: of the shell.
        analysis: of the whole network.
        whole_graph: its graph without gates.
        usual: the usual features of each tensor that gates look at.

    Raises:
        Refused: of a block that is left, the branch cannot be told from the shortcut.
    """
    labels = label_graph(small, example_like(small, analysis.input_shape))
    whole = _labels_of_the_whole(small, labels, cut, analysis)
    like = example_like(small, (1,))
    nodes = {node.name: node for node in small.graph.nodes}
    blocks = {
        place: (branch_of(nodes[block.addition], block, analysis.labels), block.addition)
        for place, block in analysis.additions.items()
        if block.addition in nodes
    }
    reads = [
        Read(mix.node, nodes[mix.node].all_input_nodes[0].name, mix.axis, units)
        for mix in analysis.labels.mixes
        if mix.node in nodes and not mix.depthwise
        for left in [inputs_left(mix, small.get_submodule(mix.layer), cut.origins)]
        for units in [analysis.units_at(left)]
        if (units[:, 0] >= 0).any()
    ]
    read = {site for found in reads for site in found.units[:, 0].tolist()}
    placement = Placement(reads, blocks=blocks)
    sources = _Sources(analysis, whole_graph, nodes)
    for place, site in enumerate(analysis.sites):
        left = place in blocks if site.kind == "block" else place in read
        placement.looks_at.append(site.source if left else None)
        if left and site.source not in placement.pools:
            node = sources.find(site.source)
            axis, _ = channel_axis(analysis.labels, site.source)
            features = usual(site.source).to(like)
            pool = PooledFeatures(
                state, like.dtype, axis, source=site.source, usual=features,
                places=_places(analysis, labels, whole, site.source, node, len(features)),
            )  # fmt: skip
            placement.pools[site.source] = (node, pool)
    return placement


def usual_features(watcher: nn.Module, labels: Labels, images: Tensor | None) -> dict[str, Tensor]:
    """Per tensor that gates look at the mean features over some images, without them zeros.

    Args:
        watcher: a copy of the gated network that decides; it is called on the images.
        labels: of the whole network.
    """
    found: dict[str, Tensor] = {}

    def remember(source: str, pool: PooledFeatures) -> None:
        width = channel_axis(labels, source)[1]
        found[source] = torch.zeros(width) if pool.usual is None else pool.usual.clone()
        pool.register_forward_hook(
            lambda _module, _args, features: found.update({source: features.mean(0)})
        )

    for pool in watcher.modules():
        if isinstance(pool, PooledFeatures):
            remember(pool.source, pool)
    if images is not None:
        watcher(images)
    return found


def _labels_of_the_whole(
    small: fx.GraphModule, labels: Labels, cut: Cut, analysis: Analysis
) -> np.ndarray:
    """Per label of the small network the class (root label) of the whole one, or -1.

    Of what layers and parameters write: they keep their names, and the cut says which of their
    channels are left.
    """
    starts = {owner: start for owner, start, _ in analysis.labels.owners}
    roots = np.full(labels.count, -1, dtype=np.int64)
    for owner, start, stop in labels.owners:
        name, role = owner
        if owner not in starts or role not in ("out", "parameter"):
            continue
        positions = np.arange(stop - start)
        if role == "out":
            module = small.get_submodule(name)
            transposed = isinstance(module, TRANSPOSED)
            if transposed and module.groups != 1:
                continue
            kept = cut.origins[f"{name}.weight"].kept.get(1 if transposed else 0)
        else:
            axes = cut.origins[name].kept
            kept = next(iter(axes.values())) if axes else None
        if kept is not None:
            positions = kept.numpy()
        roots[start:stop] = analysis.labels.roots[starts[owner] + positions]
    return roots


def _places(
    analysis: Analysis, labels: Labels, whole: np.ndarray, source: str, node: str, count: int
) -> tuple[Tensor, Tensor]:
    """Which channels of the tensor that is looked at are which of the features there were."""
    before, now = analysis.labels.tensors[source], labels.tensors[node]
    if before.axis is None:  # all its channels have one label: none can be cut
        left = count if node == source else 0
        return torch.arange(left), torch.arange(left)
    free: dict[int, list[int]] = {}
    for feature, root in enumerate(analysis.labels.roots[before.ids].tolist()):
        free.setdefault(root, []).append(feature)
    pairs = []
    for channel, root in enumerate(whole[now.ids].tolist()):
        if free.get(root):
            pairs.append((channel, free[root].pop(0)))
    channels, features = zip(*pairs, strict=True) if pairs else ((), ())
    return torch.tensor(channels, dtype=torch.long), torch.tensor(features, dtype=torch.long)


class _Sources:
    """What stands for a tensor of the whole network whose node has gone.

    Of a block that is left out its shortcut, otherwise what the node read; in the end the image.
    """

    def __init__(self, analysis: Analysis, whole: fx.Graph, nodes: dict[str, fx.Node]) -> None:
        self.nodes = nodes
        fed = fed_by_the_image(whole)
        self.before = {
            node.name: next(source.name for source in node.all_input_nodes if source in fed)
            for node in whole.nodes
            if node in fed and node.op != "placeholder"
        }
        self.before |= {a.addition: a.shortcut for a in analysis.additions.values()}
        self.labelled = analysis.labels.tensors

    def find(self, source: str) -> str:
        while source not in self.nodes or source not in self.labelled:
            source = self.before[source]
        return source
