"""Third stage: from labels to gate sites, their units, and what each one costs.

A channel site is a set of classes that lie in the same tensors, so all its units cost the same;
a block site is one residual addition. Everything is named by nodes and layers of the graph.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from polarprune.graph.label_pass import label_graph, run_for_values
from polarprune.graph.labels import Labels, Mix
from polarprune.graph.operators import TRANSPOSED
from polarprune.graph.residual import ResidualAddition, residual_additions


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
    channels: dict[str, int]  # channels (axis 1) of each tensor that a gate may look at

    @cached_property
    def unit_of(self) -> dict[int, tuple[int, int]]:
        """(site, unit) of each class."""
        return {
            int(root): (site, unit)
            for site, roots in enumerate(self.classes)
            for unit, root in enumerate(roots)
        }

    def units_at(self, labels: np.ndarray) -> list[tuple[int, int] | None]:
        """The (site, unit) of each channel position, None where it belongs to no site."""
        roots = self.labels.roots[labels]
        return [self.unit_of.get(int(root)) for root in roots]


def analyse(
    graph_module: fx.GraphModule, input_shape: tuple[int, ...], *, blocks: bool, channels: bool
) -> Analysis:
    """Labels, sites and costs of a normalised graph.

    Args:
        input_shape: (1, ...) of one image with its batch axis.
    """
    example = example_like(graph_module, input_shape)
    labels = label_graph(graph_module, example)
    values = run_for_values(graph_module, example)
    totals = {mix.node: _macs(graph_module, mix, values) for mix in labels.mixes}
    additions, others = residual_additions(
        graph_module.graph, {name: total for name, (_, total) in totals.items()}, values
    )
    refused = [Refusal(where, reason) for where, reason in dict.fromkeys(labels.refused)]
    analysis = Analysis(input_shape, labels, [], [], {}, [], refused, {})
    if blocks:
        refused += [Refusal(where, reason) for where, reason in others]
        _add_block_sites(analysis, graph_module.graph, additions, totals)
    if channels:
        _add_channel_sites(analysis, graph_module.graph)
    _name_uniquely(analysis)
    analysis.costs = [_cost(analysis, mix, *totals[mix.node]) for mix in labels.mixes]
    _price_units(analysis)
    for site in analysis.sites:
        value = values[site.source]
        analysis.channels[site.source] = int(value.shape[1])
    return analysis


def example_like(graph_module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """A zero input of this shape in the network's own dtype and on its device."""
    like = next((p for p in graph_module.parameters()), torch.zeros(()))
    return torch.zeros(input_shape, dtype=like.dtype, device=like.device)


def _macs(graph_module: fx.GraphModule, mix: Mix, values: dict[str, Tensor]) -> tuple[int, int]:
    """(MACs of one input-output channel pair, MACs of the whole operator) for one image."""
    module = graph_module.get_submodule(mix.layer)
    source, result = values[mix.source], values[mix.node]
    if isinstance(module, nn.Linear):
        per_pair = int(np.prod(result.shape[1:-1], dtype=np.int64))
    else:
        spatial = source if isinstance(module, TRANSPOSED) else result
        kernel = np.prod(module.kernel_size, dtype=np.int64)  # type: ignore[arg-type]
        per_pair = int(np.prod(spatial.shape[2:], dtype=np.int64) * kernel)
    return per_pair, per_pair * len(mix.inputs) * len(mix.outputs) // mix.groups


def _add_block_sites(
    analysis: Analysis,
    graph: fx.Graph,
    additions: list[ResidualAddition],
    totals: dict[str, tuple[int, int]],
) -> None:
    for found in additions:
        node = _node(graph, found.addition)
        stack = list(node.meta.get("nn_module_stack", {}))
        name = stack[-1] if stack and stack[-1] else found.addition
        saved = sum(totals[n][1] for n in _dead_without(graph, found) if n in totals)
        analysis.additions[len(analysis.sites)] = found
        analysis.sites.append(GateSite(name, "block", 1, saved, found.start))
        analysis.classes.append(np.zeros(0, dtype=np.int64))


def _dead_without(graph: fx.Graph, block: ResidualAddition) -> set[str]:
    """The nodes that nothing needs any more once this branch is left out."""
    live: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node.name in live:
            sources = {n.name for n in node.all_input_nodes}
            live |= {block.shortcut} if node.name == block.addition else sources
    return set(block.private) - live


def _add_channel_sites(analysis: Analysis, graph: fx.Graph) -> None:
    labels = analysis.labels
    pinned = labels.pinned_roots()
    read = {int(r) for m in labels.mixes if not m.depthwise for r in labels.roots[m.inputs]}
    written = {int(r) for r in labels.roots[np.flatnonzero(labels.written)]}
    where: dict[int, list[tuple[int, int]]] = defaultdict(list)
    first: dict[int, tuple[int, int]] = {}
    names = list(labels.tensors)
    for place, name in enumerate(names):
        flat = labels.roots[labels.tensors[name].compact.reshape(-1).numpy()]
        roots, at, counts = np.unique(flat, return_index=True, return_counts=True)
        for root, position, count in zip(roots.tolist(), at.tolist(), counts.tolist(), strict=True):
            where[root].append((place, count))
            first.setdefault(root, (place, position))
    groups: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for root in sorted(where, key=lambda r: first[r]):
        if root in read and root in written and root not in pinned:
            groups[tuple(where[root])].append(root)
    for members in groups.values():
        roots = np.asarray(members, dtype=np.int64)
        writers = [
            m
            for m in labels.mixes
            if not m.depthwise and np.isin(labels.roots[m.outputs], roots).any()
        ]
        earliest = names[first[members[0]][0]]
        source = earliest
        if len(writers) == 1 and _node(graph, writers[0].source).op != "placeholder":
            # Pooled once for every gate that looks at the same tensor (a block's own gate does).
            source = writers[0].source
        name = writers[0].layer if writers else earliest
        analysis.sites.append(GateSite(name, "channel", len(members), 0, source))
        analysis.classes.append(roots)


def _node(graph: fx.Graph, name: str) -> fx.Node:
    found: fx.Node = next(node for node in graph.nodes if node.name == name)
    return found


def _name_uniquely(analysis: Analysis) -> None:
    seen: dict[str, int] = {}
    for place, site in enumerate(analysis.sites):
        count = seen[site.name] = seen.get(site.name, 0) + 1
        if count > 1:
            renamed = f"{site.name}#{count}"
            analysis.sites[place] = GateSite(
                renamed, site.kind, site.units, site.unit_macs, site.source
            )


def _cost(analysis: Analysis, mix: Mix, per_pair: int, total: int) -> MixCost:
    reads, fixed_in = _counts(analysis, mix.inputs)
    writes, fixed_out = _counts(analysis, mix.outputs)
    group_macs: dict[int, int] = defaultdict(int)
    fixed = 0
    if mix.groups > 1:
        each = total // mix.groups
        firsts = mix.inputs.reshape(mix.groups, -1)[:, 0]
        for found in analysis.units_at(firsts):
            if found is None:
                fixed += each
            else:
                group_macs[found[0]] += each
        group_macs = {s: m // analysis.sites[s].units for s, m in group_macs.items()}
    return MixCost(
        mix, per_pair, total, reads, writes, fixed_in, fixed_out, dict(group_macs), fixed
    )


def _counts(analysis: Analysis, labels: np.ndarray) -> tuple[dict[int, int], int]:
    """Positions a unit of each site, and positions of no site."""
    counts: dict[int, int] = defaultdict(int)
    fixed = 0
    for found in analysis.units_at(labels):
        if found is None:
            fixed += 1
        else:
            counts[found[0]] += 1
    return {site: n // analysis.sites[site].units for site, n in counts.items()}, fixed


def _price_units(analysis: Analysis) -> None:
    """Fill in unit_macs of the channel sites: what closing one unit alone saves."""
    for place, site in enumerate(analysis.sites):
        if site.kind == "block":
            continue
        saved = 0
        for cost in analysis.costs:
            if cost.mix.groups > 1:
                saved += cost.group_macs.get(place, 0)
                continue
            n_in, n_out = cost.reads.get(place, 0), cost.writes.get(place, 0)
            all_in, all_out = len(cost.mix.inputs), len(cost.mix.outputs)
            saved += cost.per_pair * (n_in * all_out + n_out * all_in - n_in * n_out)
        analysis.sites[place] = GateSite(site.name, "channel", site.units, saved, site.source)
