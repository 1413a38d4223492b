"""Gates as nodes of a graph: pool a tensor, decide, apply the decision where channels are read."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx, nn

from polarprune.gating import (
    MASKABLE,
    BlockGate,
    ChannelGates,
    GateState,
    MaskedReader,
    PooledFeatures,
    SourceGate,
)
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


@dataclass(frozen=True)
class GatePlan:
    """Which gate module decides for which site: one for all sites that look at the same tensor.

    Attributes:
        sources: per module the tensor (node name) that it looks at.
        sizes: per module its units.
        of_site: per site the module and its first unit there.
    """

    sources: list[str]
    sizes: list[int]
    of_site: list[tuple[int, int]]


def plan_gates(sites: list[GateSite]) -> GatePlan:
    """Group sites by what they look at, in their order."""
    sources = list(dict.fromkeys(site.source for site in sites))
    sizes = [0] * len(sources)
    of_site = []
    for site in sites:
        number = sources.index(site.source)
        of_site.append((number, sizes[number]))
        sizes[number] += site.units
    return GatePlan(sources, sizes, of_site)


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
    plain: fx.GraphModule,
    placement: Placement,
    plan: GatePlan,
    gates: list[SourceGate],
    state: GateState,
) -> fx.GraphModule:
    """The network with its gates, as submodules of `gating`; the graph is changed in place.

    Args:
        gates: those of the plan.
    """
    gating = nn.Module()
    plain.add_module("gating", gating)
    body = _Inserter(plain, placement, plan, state)
    left = {plan.of_site[site][0] for site, at in enumerate(placement.looks_at) if at is not None}
    for number, gate in enumerate(gates):
        if number in left:
            body.add_gate(number, gate)
    body.gate_channels()
    body.gate_blocks()
    like = next((p for p in plain.parameters()), torch.zeros(()))
    gating.to(device=like.device, dtype=like.dtype).train(plain.training)
    graph_module = fx.GraphModule(plain, plain.graph)
    for path, layer in body.masked_layers.items():  # the graph names their readers instead
        graph_module.add_submodule(path, layer)
    for number, gate in enumerate(gates):  # those that nothing is left for are not in the graph
        graph_module.add_submodule(f"gating.gate_{number}", gate)
    graph_module.training = plain.training
    return graph_module


class _Inserter:
    """Writes gate nodes into one graph."""

    def __init__(
        self, plain: fx.GraphModule, placement: Placement, plan: GatePlan, state: GateState
    ) -> None:
        self.root = plain
        self.graph = plain.graph
        self.placement = placement
        self.plan = plan
        self.state = state
        self.nodes = {node.name: node for node in plain.graph.nodes}
        self.gates: dict[int, fx.Node] = {}
        self.masked_layers: dict[str, nn.Module] = {}
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

    def add_gate(self, number: int, gate: SourceGate) -> None:
        """Let a gate look at its tensor."""
        looked_at, pool = self.placement.pools[self.plan.sources[number]]
        at = self.nodes[looked_at]
        pooled = self._call(f"pool_{number}", pool, at, after=at)
        self.gates[number] = self._call(f"gate_{number}", gate, pooled, after=pooled)

    def gate_channels(self) -> None:
        """One gating of each tensor, shared by the mixing operators that read it."""
        readers: dict[str, list[Read]] = {}
        for read in self.placement.reads:
            readers.setdefault(read.source, []).append(read)
        for count, (source, reads) in enumerate(readers.items()):
            numbers, index = self._values_of(reads[0].units)
            layers = [self._maskable(read) for read in reads]
            masked = all(layer is not None for layer in layers)
            where = torch.from_numpy(index)
            module = ChannelGates(
                self.state, where, reads[0].axis, masked=masked,
                owners=self._owners_of(reads[0].units),
            )  # fmt: skip
            tensor, gates = self.nodes[source], [self.gates[number] for number in numbers]
            gated = self._call(
                f"channels_{count}", module, tensor, *gates, after=self._latest([tensor, *gates])
            )
            for read, layer in zip(reads, layers, strict=True):
                reader = self.nodes[read.node]
                reader.replace_input_with(tensor, gated)
                if masked and layer is not None:
                    self._mask(reader, MaskedReader(self.state, where, layer), gates)

    def _maskable(self, read: Read) -> nn.Module | None:
        """The layer that reads, where masking its weight along axis 1 closes what it reads."""
        node = self.nodes[read.node]
        if node.op != "call_module":
            return None
        layer = self.root.get_submodule(str(node.target))
        if type(layer) not in MASKABLE or getattr(layer, "groups", 1) != 1:
            return None
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return layer if weight.shape[1] == len(read.units) else None

    def _mask(self, reader: fx.Node, module: MaskedReader, gates: list[fx.Node]) -> None:
        path = str(reader.target)
        self.masked_layers[path] = module._layer[0]
        name = f"gating.reader_{len(self.masked_layers)}_{reader.name}"
        self.root.add_submodule(name, module)
        reader.target = name
        reader.args = (*reader.args, *gates)

    def _values_of(self, units: np.ndarray) -> tuple[list[int], np.ndarray]:
        """The gate modules that decide about these (site, unit), and where among their values.

        Behind the values of all these modules lies one that is always open.
        """
        of_site = np.asarray(self.plan.of_site).reshape(-1, 2)
        gated = units[:, 0] >= 0
        modules, first = of_site[units[gated, 0]].T
        numbers = np.unique(modules)
        sizes = np.asarray(self.plan.sizes)[numbers]
        starts = np.cumsum(sizes) - sizes
        index = np.full(len(units), sizes.sum(), dtype=np.int64)
        index[gated] = starts[np.searchsorted(numbers, modules)] + first + units[gated, 1]
        return numbers.tolist(), index

    def _owners_of(self, units: np.ndarray) -> np.ndarray:
        """The gate module and its unit that decide about these (site, unit)."""
        of_site = np.asarray(self.plan.of_site).reshape(-1, 2)
        gated = units[:, 0] >= 0
        owners = np.full((len(units), 2), -1, dtype=np.int64)
        owners[gated] = of_site[units[gated, 0]]
        owners[gated, 1] += units[gated, 1]
        return owners

    def gate_blocks(self) -> None:
        """Each residual branch, just before its addition."""
        for place, (branch_name, addition) in self.placement.blocks.items():
            number, unit = self.plan.of_site[place]
            branch, gate = self.nodes[branch_name], self.gates[number]
            latest = self._latest([branch, gate])
            module = BlockGate(self.state, unit)
            gated = self._call(f"block_{place}", module, branch, gate, after=latest)
            self.nodes[addition].replace_input_with(branch, gated)

    def _latest(self, nodes: list[fx.Node]) -> fx.Node:
        return max(nodes, key=self.place.__getitem__)
