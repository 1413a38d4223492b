"""Third stage: from labels to gate sites, their units, and what each one costs.

A channel site is a set of classes that lie in the same tensors, so all its units cost the same;
a block site is one residual addition. Everything is named by nodes and layers of the graph.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from polarprune.graph.cells import sites_of_cells
from polarprune.graph.class_groups import ClassGroup, group_classes
from polarprune.graph.factors import takers_of_factor
from polarprune.graph.geometry import Geometry, geometry_of
from polarprune.graph.label_pass import label_graph
from polarprune.graph.labels import Labels, Mix
from polarprune.graph.operator_tables import NORM_MODULES, TRANSPOSED
from polarprune.graph.operators import fed_by_the_image, module_of
from polarprune.graph.residual import ResidualAddition, residual_additions
from polarprune.graph.shapes import Values, run_for_values, uncounted_macs


@dataclass(frozen=True)
class GateSite:
    """Where gates sit.

    Attributes:
        kind: "block" (one unit: a residual branch) or "channel" (a unit a class of channels).
        units: how many decisions.
        unit_macs: multiply-accumulates for one image that closing one unit alone saves.
        source: the tensor (node name) that an input-dependent gate looks at.
    """

    name: str
    kind: Literal["block", "channel"]
    units: int
    unit_macs: int
    source: str


@dataclass(frozen=True)
class Refusal:
    """What could not be gated, in words."""

    where: str
    reason: str


@dataclass(frozen=True)
class MixCost:
    """What one mixing operator costs and which sites it reads and writes.

    MACs = per_pair * open inputs * open outputs (dense), or the sum of `group_macs` over open
    units (grouped). Counts are positions a unit; `held_in`, `held_out` and `held_macs` are those
    of channels that no gate closes, by their place after all sites (Analysis.held).
    """

    mix: Mix
    geometry: Geometry
    per_pair: int
    total: int
    reads: dict[int, int]
    writes: dict[int, int]
    group_macs: dict[int, int]
    held_in: dict[int, int]
    held_out: dict[int, int]
    held_macs: dict[int, int]


@dataclass
class Analysis:
    """What is known about a normalised graph: its labels, sites and costs (not its weights)."""

    input_shape: tuple[int, ...]
    labels: Labels
    sites: list[GateSite]
    classes: list[np.ndarray]  # per site: the class (root label) of each unit; empty for blocks
    additions: dict[int, ResidualAddition]  # per block site
    costs: list[MixCost]
    refused: list[Refusal]
    uncounted: dict[str, int] = field(default_factory=dict)  # MACs of operators no rule knows
    held: list[ClassGroup] = field(default_factory=list)  # what no gate closes; places after sites
    # Per block site the tensors that take over its weight (of methods that weigh).
    takers: dict[int, list[str]] = field(default_factory=dict)
    # Per block site the channel sites of which one unit has to be open, or it is closed.
    cells: dict[int, list[int]] = field(default_factory=dict)
    # (operator's place in costs, site): the operator writes channels of the site before the gate,
    # which looks at what comes of them, can have decided about them.
    too_early: list[tuple[int, int]] = field(default_factory=list)
    # Channel sites of which something reads no others: one unit of each set has to be open.
    feeding: list[frozenset[int]] = field(default_factory=list)

    @cached_property
    def _unit_of_label(self) -> np.ndarray:
        """(site, unit) of each label, (-1, -1) where it belongs to no site."""
        of_root = np.full((self.labels.count, 2), -1, dtype=np.int64)
        for site, roots in enumerate(self.classes):
            of_root[roots, 0] = site
            of_root[roots, 1] = np.arange(len(roots))
        found: np.ndarray = of_root[self.labels.roots]
        return found

    @cached_property
    def _place_of_label(self) -> np.ndarray:
        of_root = np.full(self.labels.count, -1, dtype=np.int64)
        for place, roots in enumerate([*self.classes, *(group.members for group in self.held)]):
            of_root[roots] = place
        found: np.ndarray = of_root[self.labels.roots]
        return found

    def places_at(self, labels: np.ndarray) -> np.ndarray:
        """The site of each channel position, or the group after all sites; -1: always gone."""
        found: np.ndarray = self._place_of_label[labels]
        return found

    def units_at(self, labels: np.ndarray) -> np.ndarray:
        """The (site, unit) of each channel position, (-1, -1) where it belongs to no site."""
        found: np.ndarray = self._unit_of_label[labels]
        return found


def analyse(
    graph_module: fx.GraphModule,
    input_shape: tuple[int, ...],
    *,
    blocks: bool,
    channels: bool,
    weighed: bool = False,
) -> Analysis:
    """Labels, sites and costs of a normalised graph.

    Args:
        input_shape: (1, ...) of one image with its batch axis.
        weighed: open units keep a weight, which something in a block's branch has to take over.
    """
    example = example_like(graph_module, input_shape)
    values = run_for_values(graph_module, example)
    labels = label_graph(graph_module, example, values)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    totals = {mix.node: _macs(graph_module, mix, values) for mix in labels.mixes}
    additions, others = residual_additions(
        graph_module.graph, {name: total for name, (_, total) in totals.items()}, values
    )
    refused = [Refusal(where, reason) for where, reason in dict.fromkeys(labels.refused)]
    analysis = Analysis(input_shape, labels, [], [], {}, [], refused)
    additions = _without_shared_norms(graph_module, additions, others)
    takers: dict[str, list[str]] = {}
    if weighed:
        additions, takers = _that_take_a_factor(graph_module, additions, others)
    if blocks:
        refused += [Refusal(where, reason) for where, reason in others]
        _add_block_sites(analysis, nodes, additions, totals)
        analysis.takers = {
            place: takers[found.addition]
            for place, found in analysis.additions.items()
            if found.addition in takers
        }
    groups = group_classes(labels, {n.name for n in fed_by_the_image(graph_module.graph)})
    gated = [group for group in groups if channels and not group.pinned_by]
    _add_channel_sites(analysis, nodes, gated)
    analysis.held = groups if not channels else [group for group in groups if group.pinned_by]
    _name_uniquely(analysis)
    analysis.costs = [
        _cost(
            analysis,
            mix,
            geometry_of(graph_module.get_submodule(mix.layer), tuple(values[mix.source].shape)),
            *totals[mix.node],
        )
        for mix in labels.mixes
    ]
    _price_units(analysis)
    reads = {
        mix.node: frozenset(analysis.units_at(mix.inputs)[:, 0].tolist())
        for mix in labels.mixes
        if not mix.depthwise
    }
    analysis.cells = sites_of_cells(graph_module.graph, analysis.additions, reads)
    analysis.feeding = [sites for sites in dict.fromkeys(reads.values()) if -1 not in sites]
    analysis.too_early = _too_early(analysis, nodes)
    analysis.uncounted = uncounted_macs(graph_module, example, set(totals))
    return analysis


def example_like(graph_module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """A zero input of this shape in the network's own dtype and on its device."""
    like = next((p for p in graph_module.parameters()), torch.zeros(()))
    return torch.zeros(input_shape, dtype=like.dtype, device=like.device)


def _macs(graph_module: fx.GraphModule, mix: Mix, values: Values) -> tuple[int, int]:
    """(MACs of one input-output channel pair, MACs of the whole operator) for one image.

    The values are those of one image, but a network may fold windows into the batch.
    """
    module = graph_module.get_submodule(mix.layer)
    source, result = values[mix.source], values[mix.node]
    if isinstance(module, nn.Linear):
        per_pair = int(np.prod(result.shape[:-1], dtype=np.int64))
    else:
        spatial = source if isinstance(module, TRANSPOSED) else result
        kernel = np.prod(module.kernel_size, dtype=np.int64)  # type: ignore[arg-type]
        places = spatial.shape[0] * np.prod(spatial.shape[2:], dtype=np.int64)
        per_pair = int(places * kernel)
    return per_pair, per_pair * len(mix.inputs) * len(mix.outputs) // mix.groups


def _add_block_sites(
    analysis: Analysis,
    nodes: dict[str, fx.Node],
    additions: list[ResidualAddition],
    totals: dict[str, tuple[int, int]],
) -> None:
    for found in additions:
        stack = list(nodes[found.addition].meta.get("nn_module_stack", {}))
        name = stack[-1] if stack and stack[-1] else found.addition
        saved = sum(totals[n][1] for n in found.removed if n in totals)
        analysis.additions[len(analysis.sites)] = found
        source = nodes[found.start]
        while source.name not in analysis.labels.tensors:  # the parts of a split: look at the whole
            source = source.all_input_nodes[0]
        analysis.sites.append(GateSite(name, "block", 1, saved, source.name))
        analysis.classes.append(np.zeros(0, dtype=np.int64))


def _without_shared_norms(
    graph_module: fx.GraphModule,
    additions: list[ResidualAddition],
    others: list[tuple[str, str]],
) -> list[ResidualAddition]:
    """Blocks that begin at what depends on the image, and write no statistics that others read."""
    callers: dict[str, set[str]] = defaultdict(set)
    for node in graph_module.graph.nodes:
        if isinstance(module_of(graph_module, node), NORM_MODULES):
            callers[str(node.target)].add(node.name)
    names = {node.name for node in fed_by_the_image(graph_module.graph)}
    kept = []
    for found in additions:
        shared = [c for c in callers.values() if c & found.private and c - found.private]
        if shared:
            others.append((found.addition, "a branch with a normalisation that others call too"))
        elif found.start not in names:
            others.append((found.addition, "a branch that does not begin at the image's features"))
        else:
            kept.append(found)
    return kept


def _that_take_a_factor(
    graph_module: fx.GraphModule,
    additions: list[ResidualAddition],
    others: list[tuple[str, str]],
) -> tuple[list[ResidualAddition], dict[str, list[str]]]:
    """Blocks whose weight can be folded into their branch, and per addition into which tensors."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    kept = []
    takers = {}
    for found in additions:
        taking = takers_of_factor(graph_module, nodes[found.branch])
        if taking is None:
            others.append((found.addition, "a branch into which its weight cannot be folded"))
        else:
            kept.append(found)
            takers[found.addition] = taking
    return kept, takers


def _add_channel_sites(
    analysis: Analysis, nodes: dict[str, fx.Node], groups: list[ClassGroup]
) -> None:
    labels = analysis.labels
    group_of = np.full(labels.count, -1, dtype=np.int64)
    for place, group in enumerate(groups):
        group_of[group.members] = place
    writers: dict[int, list[Mix]] = defaultdict(list)
    for mix in labels.mixes:
        if not mix.depthwise:
            for place in np.unique(group_of[labels.roots[mix.outputs]]).tolist():
                writers[place].append(mix)
    for place, group in enumerate(groups):
        source, name = group.earliest, group.earliest
        if writers[place]:
            name = writers[place][0].layer
        if [writer.node for writer in writers[place]] == [group.earliest]:
            # What the one writer reads is pooled once for every gate that looks at it (a block's
            # own gate does); of channels that are there before (zeros), it may come too late.
            before = writers[place][0].source
            source = group.earliest if nodes[before].op == "placeholder" else before
        analysis.sites.append(GateSite(name, "channel", len(group.members), 0, source))
        analysis.classes.append(group.members)


def _name_uniquely(analysis: Analysis) -> None:
    seen: dict[str, int] = {}
    for place, site in enumerate(analysis.sites):
        count = seen[site.name] = seen.get(site.name, 0) + 1
        if count > 1:
            analysis.sites[place] = replace(site, name=f"{site.name}#{count}")


def _cost(analysis: Analysis, mix: Mix, geometry: Geometry, per_pair: int, total: int) -> MixCost:
    reads, held_in = _counts(analysis, mix.inputs)
    writes, held_out = _counts(analysis, mix.outputs)
    group_macs: dict[int, int] = {}
    held_macs: dict[int, int] = {}
    if mix.groups > 1:
        each = total // mix.groups
        groups, held = _counts(analysis, mix.inputs.reshape(mix.groups, -1)[:, 0])
        group_macs = {site: n * each for site, n in groups.items()}
        held_macs = {place: n * each for place, n in held.items()}
    return MixCost(
        mix, geometry, per_pair, total, reads, writes, group_macs, held_in, held_out, held_macs
    )


def _counts(analysis: Analysis, labels: np.ndarray) -> tuple[dict[int, int], dict[int, int]]:
    """Positions a unit of each site, and positions of each group that no gate closes."""
    places = analysis.places_at(labels)
    found, counts = np.unique(places[places >= 0], return_counts=True)
    pairs = list(zip(found.tolist(), counts.tolist(), strict=True))
    count = len(analysis.sites)
    sites = {place: n // analysis.sites[place].units for place, n in pairs if place < count}
    return sites, {place: n for place, n in pairs if place >= count}


def _too_early(analysis: Analysis, nodes: dict[str, fx.Node]) -> list[tuple[int, int]]:
    before: dict[str, set[fx.Node]] = {}
    for source in {site.source for site in analysis.sites}:
        found = before[source] = {nodes[source]}
        waiting = [nodes[source]]
        while waiting:
            new = [node for node in waiting.pop().all_input_nodes if node not in found]
            found.update(new)
            waiting += new
    return [
        (number, place)
        for number, cost in enumerate(analysis.costs)
        for place in (() if cost.mix.depthwise else cost.writes)
        if nodes[cost.mix.node] in before[analysis.sites[place].source]
    ]


def _price_units(analysis: Analysis) -> None:
    """Fill in unit_macs of the channel sites: what closing one unit alone saves."""
    saved: dict[int, int] = defaultdict(int)
    for cost in analysis.costs:
        if cost.mix.groups > 1:
            for place, macs in cost.group_macs.items():
                saved[place] += macs
            continue
        all_in, all_out = sum(cost.held_in.values()), sum(cost.held_out.values())
        all_in += sum(n * analysis.sites[place].units for place, n in cost.reads.items())
        all_out += sum(n * analysis.sites[place].units for place, n in cost.writes.items())
        for place in {*cost.reads, *cost.writes}:
            n_in, n_out = cost.reads.get(place, 0), cost.writes.get(place, 0)
            saved[place] += cost.per_pair * (n_in * all_out + n_out * all_in - n_in * n_out)
    for place, site in enumerate(analysis.sites):
        if site.kind == "channel":
            analysis.sites[place] = replace(site, unit_macs=saved[place])
