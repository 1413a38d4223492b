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

from polarprune.graph.label_pass import label_graph
from polarprune.graph.labels import Labels, Mix
from polarprune.graph.operator_tables import TRANSPOSED
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
    units (grouped). Counts are positions a unit; `fixed` ones belong to no site.
    """

    mix: Mix
    per_pair: int
    total: int
    reads: dict[int, int]
    writes: dict[int, int]
    fixed_in: int
    fixed_out: int
    group_macs: dict[int, int]
    fixed_group_macs: int


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
    gone: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    # per label: cut whatever is decided, since nothing reads it or nothing but zeros is in it

    @cached_property
    def _unit_of_label(self) -> np.ndarray:
        """(site, unit) of each label, (-1, -1) where it belongs to no site."""
        of_root = np.full((len(self.labels.keys), 2), -1, dtype=np.int64)
        for site, roots in enumerate(self.classes):
            of_root[roots, 0] = site
            of_root[roots, 1] = np.arange(len(roots))
        found: np.ndarray = of_root[self.labels.roots]
        return found

    def units_at(self, labels: np.ndarray) -> np.ndarray:
        """The (site, unit) of each channel position, (-1, -1) where it belongs to no site."""
        found: np.ndarray = self._unit_of_label[labels]
        return found


def analyse(
    graph_module: fx.GraphModule, input_shape: tuple[int, ...], *, blocks: bool, channels: bool
) -> Analysis:
    """Labels, sites and costs of a normalised graph.

    Args:
        input_shape: (1, ...) of one image with its batch axis.
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
    if blocks:
        refused += [Refusal(where, reason) for where, reason in others]
        _add_block_sites(analysis, nodes, additions, totals)
    if channels:
        _add_channel_sites(analysis, nodes)
    _name_uniquely(analysis)
    analysis.gone = _always_gone(labels)
    analysis.costs = [_cost(analysis, mix, *totals[mix.node]) for mix in labels.mixes]
    _price_units(analysis)
    analysis.uncounted = uncounted_macs(graph_module, example)
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


def _add_channel_sites(analysis: Analysis, nodes: dict[str, fx.Node]) -> None:
    labels = analysis.labels
    count = len(labels.keys)
    candidate = np.zeros(count, dtype=bool)
    for mix in labels.mixes:
        if not mix.only_ties:
            candidate[labels.roots[mix.inputs]] = True
    written = np.zeros(count, dtype=bool)
    written[labels.roots[np.flatnonzero(labels.written)]] = True
    candidate &= written
    candidate[list(labels.pinned_roots())] = False
    # Tensors that share their labels (an activation and what it reads) are looked at once.
    distinct: dict[int, tuple[str, np.ndarray]] = {}
    for name, tensor in labels.tensors.items():
        distinct.setdefault(id(tensor.ids), (name, tensor.ids))
    tensors = list(distinct.values())
    # Per class: its first tensor and position, and a fingerprint of where it lies how often.
    first = np.full(count, np.iinfo(np.int64).max, dtype=np.int64)
    prints = np.zeros((2, count), dtype=np.uint64)
    widest = 1 + max((len(ids) for _, ids in tensors), default=0)
    random = np.random.default_rng(0).integers(1, 2**63, size=(2, len(tensors)), dtype=np.uint64)
    seen = np.zeros(count, dtype=np.int64)
    for place, (_, ids) in enumerate(tensors):
        roots, at = labels.roots[ids], np.arange(len(ids))
        seen[roots] = at
        counts = np.ones(1, dtype=np.int64)
        if not np.array_equal(seen[roots], at):  # some class comes more than once
            roots, at, counts = np.unique(roots, return_index=True, return_counts=True)
        first[roots] = np.minimum(first[roots], place * widest + at)
        prints[:, roots] += random[:, place, None] * counts.astype(np.uint64)
    found = np.flatnonzero(candidate)
    found = found[np.argsort(first[found], kind="stable")]
    _, group = np.unique(prints[:, found], axis=1, return_inverse=True)
    group_of_root = np.full(count, -1, dtype=np.int64)
    group_of_root[found] = group
    writers: dict[int, list[Mix]] = defaultdict(list)
    for mix in labels.mixes:
        if not mix.depthwise:
            for place in np.unique(group_of_root[labels.roots[mix.outputs]]).tolist():
                writers[place].append(mix)
    # Groups in the order of their first members, members in the order of their positions.
    for place in dict.fromkeys(group.tolist()):
        members = found[group == place]
        earliest = tensors[int(first[members[0]]) // widest][0]
        source, name = earliest, earliest
        if writers[place]:
            name = writers[place][0].layer
        if [writer.node for writer in writers[place]] == [earliest]:
            # What the one writer reads is pooled once for every gate that looks at it (a block's
            # own gate does); of channels that are there before (zeros), it may come too late.
            before = writers[place][0].source
            source = earliest if nodes[before].op == "placeholder" else before
        analysis.sites.append(GateSite(name, "channel", len(members), 0, source))
        analysis.classes.append(members)


def _name_uniquely(analysis: Analysis) -> None:
    seen: dict[str, int] = {}
    for place, site in enumerate(analysis.sites):
        count = seen[site.name] = seen.get(site.name, 0) + 1
        if count > 1:
            analysis.sites[place] = replace(site, name=f"{site.name}#{count}")


def _cost(analysis: Analysis, mix: Mix, per_pair: int, total: int) -> MixCost:
    reads, fixed_in = _counts(analysis, mix.inputs)
    writes, fixed_out = _counts(analysis, mix.outputs)
    group_macs: dict[int, int] = {}
    fixed = 0
    if mix.groups > 1:
        each = total // mix.groups
        groups, count = _counts(analysis, mix.inputs.reshape(mix.groups, -1)[:, 0])
        group_macs = {site: n * each for site, n in groups.items()}
        fixed = count * each
    return MixCost(mix, per_pair, total, reads, writes, fixed_in, fixed_out, group_macs, fixed)


def _always_gone(labels: Labels) -> np.ndarray:
    """Per label whether its class is cut whatever is decided."""
    count = len(labels.keys)
    needed = np.zeros((2, count), dtype=bool)
    for mix in labels.mixes:
        if not mix.only_ties:
            needed[0, labels.roots[mix.inputs]] = True
    needed[1, labels.roots[np.flatnonzero(labels.written)]] = True
    kept = needed[0] & needed[1]
    kept[list(labels.pinned_roots())] = True
    gone: np.ndarray = ~kept[labels.roots]
    return gone


def _counts(analysis: Analysis, labels: np.ndarray) -> tuple[dict[int, int], int]:
    """Positions a unit of each site, and positions of no site that stay."""
    sites = analysis.units_at(labels)[:, 0]
    found, counts = np.unique(sites[sites >= 0], return_counts=True)
    fixed = int((~analysis.gone[labels[sites < 0]]).sum())
    pairs = zip(found.tolist(), counts.tolist(), strict=True)
    return {site: n // analysis.sites[site].units for site, n in pairs}, fixed


def _price_units(analysis: Analysis) -> None:
    """Fill in unit_macs of the channel sites: what closing one unit alone saves."""
    saved: dict[int, int] = defaultdict(int)
    for cost in analysis.costs:
        if cost.mix.groups > 1:
            for place, macs in cost.group_macs.items():
                saved[place] += macs
            continue
        all_in, all_out = cost.fixed_in, cost.fixed_out
        all_in += sum(n * analysis.sites[place].units for place, n in cost.reads.items())
        all_out += sum(n * analysis.sites[place].units for place, n in cost.writes.items())
        for place in {*cost.reads, *cost.writes}:
            n_in, n_out = cost.reads.get(place, 0), cost.writes.get(place, 0)
            saved[place] += cost.per_pair * (n_in * all_out + n_out * all_in - n_in * n_out)
    for place, site in enumerate(analysis.sites):
        if site.kind == "channel":
            analysis.sites[place] = replace(site, unit_macs=saved[place])
