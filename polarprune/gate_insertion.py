"""Gates as nodes of a graph: pool a tensor, decide, apply the decision where channels are read."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx, nn

from polarprune.gating import BlockGate, ChannelGates, GateState, PooledFeatures, SiteGate
from polarprune.graph.labels import Labels
from polarprune.graph.sites import Analysis, GateSite


@dataclass(frozen=True)
class Placement:
    """Where the gates of all sites go in one graph, by the names of its nodes.

    Attributes:
        reads: what reads gated channels, in graph order.
        pools: per name the node that it looks at, and the module.
        looks_at: per site the name of its pool; None where nothing of the site is left.
        blocks: per block site that is left the nodes (branch, addition).
    """

    reads: list["Read"]
    pools: dict[str, tuple[str, PooledFeatures]] = field(default_factory=dict)
    looks_at: list[str | None] = field(default_factory=list)
    blocks: dict[int, tuple[str, str]] = field(default_factory=dict)

    def left(self, sites: list[GateSite]) -> list[np.ndarray]:
        """Per site which units are in this graph: blocks, and channels that something reads."""
        found = [np.full(site.units, place in self.blocks) for place, site in enumerate(sites)]
        for read in self.reads:
            for site, unit in read.units.tolist():
                if site >= 0:
                    found[site][unit] = True
        return found


@dataclass(frozen=True)
class Read:
    """A mixing operator that reads gated channels.

    Attributes:
        units: (channels, 2): the (site, unit) of each channel that it reads, (-1, -1) where that
            belongs to no site.
        axis: along which they lie in the source.
    """

    node: str
    source: str
    axis: int
    units: np.ndarray


def base_placement(analysis: Analysis, state: GateState, dtype: torch.dtype) -> Placement:
    """The gates of a network of which nothing has been cut."""
    pools: dict[str, tuple[str, PooledFeatures]] = {}
    for site in analysis.sites:
        axis, _ = channel_axis(analysis.labels, site.source)
        pools.setdefault(
            site.source, (site.source, PooledFeatures(state, dtype, axis, source=site.source))
        )
    mixes = [(mix, analysis.units_at(mix.inputs)) for mix in analysis.labels.mixes]
    return Placement(
        reads=[
            Read(mix.node, mix.source, mix.axis, units)
            for mix, units in mixes
            if not mix.depthwise and (units[:, 0] >= 0).any()
        ],
        pools=pools,
        looks_at=[site.source for site in analysis.sites],
        blocks={place: (a.branch, a.addition) for place, a in analysis.additions.items()},
    )


def channel_axis(labels: Labels, source: str) -> tuple[int, int]:
    """Along which axis the channels of a tensor lie (of tokens the last one), and how many."""
    tensor = labels.tensors[source]
    axis = 1 if tensor.axis is None else tensor.axis
    return axis, tensor.shape[axis]


def insert_gates(
    plain: fx.GraphModule, placement: Placement, gates: list[SiteGate], state: GateState
) -> fx.GraphModule:
    """The network with its gates, as submodules of `gating`; the graph is changed in place.

    Args:
        gates: one a site.
    """
    gating = nn.Module()
    plain.add_module("gating", gating)
    body = _Inserter(plain, placement, state)
    for place, gate in enumerate(gates):
        body.add_site(place, gate)
    body.gate_channels([len(gate.frozen) for gate in gates])
    body.gate_blocks()
    like = next((p for p in plain.parameters()), torch.zeros(()))
    gating.to(device=like.device, dtype=like.dtype).train(plain.training)
    graph_module = fx.GraphModule(plain, plain.graph)
    for place, gate in enumerate(gates):  # those that nothing is left for are not in the graph
        graph_module.add_submodule(f"gating.site_{place}", gate)
    graph_module.training = plain.training
    return graph_module


class _Inserter:
    """Writes gate nodes into one graph."""

    def __init__(self, plain: fx.GraphModule, placement: Placement, state: GateState) -> None:
        self.root = plain
        self.graph = plain.graph
        self.placement = placement
        self.state = state
        self.nodes = {node.name: node for node in plain.graph.nodes}
        self.pooled: dict[str, fx.Node] = {}
        self.gates: dict[int, fx.Node] = {}
        # A node that is inserted comes right after another one, before what was put there earlier.
        self.place: dict[fx.Node, tuple[int, ...]] = {
            node: (place,) for place, node in enumerate(plain.graph.nodes)
        }

    def _call(self, name: str, module: nn.Module, *args: fx.Node, after: fx.Node) -> fx.Node:
        self.root.add_submodule(f"gating.{name}", module)
        with self.graph.inserting_after(after):
            node = self.graph.call_module(f"gating.{name}", args)
        self.place[node] = (*self.place[after], -len(self.place))
        return node

    def add_site(self, place: int, gate: SiteGate) -> None:
        """Let a gate look at its tensor; one that nothing is left for looks at none."""
        source = self.placement.looks_at[place]
        if source is None:
            return
        if source not in self.pooled:
            looked_at, pool = self.placement.pools[source]
            at = self.nodes[looked_at]
            self.pooled[source] = self._call(f"pool_{len(self.pooled)}", pool, at, after=at)
        pooled = self.pooled[source]
        self.gates[place] = self._call(f"site_{place}", gate, pooled, after=pooled)

    def gate_channels(self, sizes: list[int]) -> None:
        """One gating of each tensor, shared by the mixing operators that read it."""
        readers: dict[str, list[Read]] = {}
        for read in self.placement.reads:
            readers.setdefault(read.source, []).append(read)
        for count, (source, reads) in enumerate(readers.items()):
            units = reads[0].units
            sites = [site for site in np.unique(units[:, 0]).tolist() if site >= 0]
            ends = np.cumsum([sizes[site] for site in sites])
            starts = np.zeros(len(sizes), dtype=np.int64)
            starts[sites] = [0, *ends[:-1]]
            always_open = ends[-1]  # the value behind those of all gates
            index = np.where(units[:, 0] < 0, always_open, starts[units[:, 0]] + units[:, 1])
            module = ChannelGates(self.state, torch.from_numpy(index), reads[0].axis)
            tensor, gates = self.nodes[source], [self.gates[site] for site in sites]
            gated = self._call(
                f"channels_{count}", module, tensor, *gates, after=self._latest([tensor, *gates])
            )
            for read in reads:
                self.nodes[read.node].replace_input_with(tensor, gated)

    def gate_blocks(self) -> None:
        """Each residual branch, just before its addition."""
        for place, (branch_name, addition) in self.placement.blocks.items():
            branch, gate = self.nodes[branch_name], self.gates[place]
            latest = self._latest([branch, gate])
            gated = self._call(f"block_{place}", BlockGate(self.state), branch, gate, after=latest)
            self.nodes[addition].replace_input_with(branch, gated)

    def _latest(self, nodes: list[fx.Node]) -> fx.Node:
        return max(nodes, key=self.place.__getitem__)
