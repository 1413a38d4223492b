"""A network with gates: where training, decisions and collapse meet."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from polarprune.collecting import paused_collection
from polarprune.decisions import check_decisions, choose_decisions
from polarprune.errors import ConfigError
from polarprune.gating import BlockGate, ChannelGates, GateState, PooledFeatures, SiteGate
from polarprune.graph.cost import CostCircuit, count_parameters
from polarprune.graph.layers import set_mode
from polarprune.graph.normalise import normalise
from polarprune.graph.sites import Analysis, GateSite, Refusal, analyse
from polarprune.graph.tracing import Draft
from polarprune.methods import GateOutput, GateRequest, build_method

# All gates together: at most this share of the network's parameters (the design says under 5 %).
_GATE_PARAMETER_SHARE = 0.04


class GatedNetwork(nn.Module):
    """A network whose residual blocks and channels can be closed. Made by attach_gates.

    Attributes:
        sites: where gates sit.
        refused: what could not be gated, in words.
        align: kept channel counts are rounded up to a multiple of this.
    """

    def __init__(self, plain: fx.GraphModule, analysis: Analysis, method: str, align: int) -> None:
        """Insert the method's gates into a normalised graph."""
        super().__init__()
        self.method = build_method(method)
        self.align = align
        self.analysis = analysis
        self.state = GateState()
        self.circuit = CostCircuit(analysis, plain.graph)
        self._plain_graph = fx.Graph()
        self._plain_graph.output(self._plain_graph.graph_copy(plain.graph, {}))
        self.body = self._insert_gates(plain)
        set_mode(self, self.body.training)

    @property
    def sites(self) -> list[GateSite]:
        """Every gate site, blocks first, in graph order."""
        return self.analysis.sites

    @property
    def refused(self) -> list[Refusal]:
        """What could not be gated, and why."""
        return self.analysis.refused

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs with the gates as they are (open, searching or frozen)."""
        return self.body(x)  # type: ignore[no-any-return]

    def site_gates(self) -> list[SiteGate]:
        """The gate of each site, in the order of `sites`."""
        return [self.body.get_submodule(f"gating.site_{i}") for i in range(len(self.sites))]  # type: ignore[misc]

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the gates; all others are the network's."""
        for gate in self.site_gates():
            yield from gate.parameters()

    def gate_macs(self) -> int:
        """MACs that all gates add for one image while they search."""
        return sum(
            module.in_features * module.out_features
            for gate in self.site_gates()
            for module in gate.modules()
            if isinstance(module, nn.Linear)
        )

    def plain(self, *, draft: bool = False) -> fx.GraphModule:
        """The network without gates, sharing its layers with this one.

        Args:
            draft: only to be rewritten, not to be called.
        """
        graph = fx.Graph()
        graph.output(graph.graph_copy(self._plain_graph, {}))
        module = Draft(self.body, graph) if draft else fx.GraphModule(self.body, graph)
        module.training = self.training
        return module

    def search(self) -> None:
        """Let the method decide from now on."""
        self.state.mode = "search"

    def open(self) -> None:
        """Open all gates at no cost."""
        self.state.mode = "open"

    def outputs(self) -> list[GateOutput]:
        """What each gate said about the last batch (search mode only)."""
        found = [gate.output for gate in self.site_gates()]
        assert all(output is not None for output in found), "no batch has been seen in search mode"
        return [output for output in found if output is not None]

    def expected_macs_ratio(self) -> Float[Tensor, ""]:
        """Expected MACs of the last batch's gates over the dense ones, differentiable."""
        macs = self.circuit.evaluate([output.openness for output in self.outputs()]).macs
        return torch.as_tensor(macs) / self.circuit.dense_macs

    def set_decisions(self, decisions: dict[str, Tensor]) -> None:
        """Freeze the gates; True = open. Sites that are left out are open.

        Raises:
            ValueError: an unknown site, a wrong number of units, or decisions that leave a live
                layer without inputs; the site is named.
        """
        checked = check_decisions(self.analysis, self.circuit, self._plain_graph, decisions)
        for site, gate in zip(self.sites, self.site_gates(), strict=True):
            gate.frozen.copy_(checked[site.name])
        self.state.mode = "frozen"

    def decisions(self, target: float | None = None) -> dict[str, Tensor]:
        """One bool tensor (units,) a site: the frozen ones, or what the gates favour by now.

        Args:
            target: keep at most this share of the dense MACs; without it, what is likelier open
                than closed stays.
        """
        gates = self.site_gates()
        if self.state.mode == "frozen" and target is None:
            return {
                site.name: gate.frozen.cpu().clone()
                for site, gate in zip(self.sites, gates, strict=True)
            }
        scores = [gate.running.detach().cpu() for gate in gates]
        return choose_decisions(self.analysis, self.circuit, scores, self.align, target)

    def _insert_gates(self, plain: fx.GraphModule) -> fx.GraphModule:
        widths = {s.source: _channel_axis(self.analysis, s.source)[1] for s in self.sites}
        requests = [GateRequest(s.units, widths[s.source], s.unit_macs) for s in self.sites]
        budget = int(_GATE_PARAMETER_SHARE * count_parameters(plain))
        like = next((p for p in plain.parameters()), torch.zeros(()))
        gating = nn.Module()
        plain.add_module("gating", gating)
        body = _GateInserter(plain, self.analysis, self.state, like.dtype)
        gates = self.method.make_gates(requests, budget)
        for place, (gate, site) in enumerate(zip(gates, self.sites, strict=True)):
            body.add_site(place, SiteGate(self.state, gate, site.units))
        body.gate_channels()
        body.gate_blocks()
        gating.to(device=like.device, dtype=like.dtype).train(plain.training)
        graph_module = fx.GraphModule(plain, plain.graph)
        graph_module.training = plain.training
        return graph_module


class _GateInserter:
    """Writes gate nodes into a graph, which becomes the gated network's body."""

    def __init__(
        self, plain: fx.GraphModule, analysis: Analysis, state: GateState, dtype: torch.dtype
    ) -> None:
        self.root = plain
        self.graph = plain.graph
        self.analysis = analysis
        self.state = state
        self.dtype = dtype
        self.nodes = {node.name: node for node in plain.graph.nodes}
        self.pooled: dict[str, fx.Node] = {}
        self.gates: list[fx.Node] = []
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
        source = self.analysis.sites[place].source
        if source not in self.pooled:
            axis, _ = _channel_axis(self.analysis, source)
            pool = PooledFeatures(self.state, self.dtype, axis)
            at = self.nodes[source]
            self.pooled[source] = self._call(f"pool_{len(self.pooled)}", pool, at, after=at)
        pooled = self.pooled[source]
        self.gates.append(self._call(f"site_{place}", gate, pooled, after=pooled))

    def gate_channels(self) -> None:
        """One gating of each tensor, shared by the mixing operators that read it."""
        readers: dict[str, list[int]] = {}
        for place, cost in enumerate(self.analysis.costs):
            if not cost.mix.depthwise and cost.reads:
                readers.setdefault(cost.mix.source, []).append(place)
        for count, (source, places) in enumerate(readers.items()):
            mix = self.analysis.costs[places[0]].mix
            units = self.analysis.units_at(mix.inputs)
            sites = [s for s in np.unique(units[:, 0]).tolist() if s >= 0]
            ends = np.cumsum([self.analysis.sites[s].units for s in sites])
            starts = np.zeros(len(self.analysis.sites), dtype=np.int64)
            starts[sites] = [0, *ends[:-1]]
            always_open = ends[-1]  # the value behind those of all gates
            index = np.where(units[:, 0] < 0, always_open, starts[units[:, 0]] + units[:, 1])
            module = ChannelGates(self.state, torch.from_numpy(index), mix.axis)
            tensor, gates = self.nodes[source], [self.gates[site] for site in sites]
            gated = self._call(
                f"channels_{count}", module, tensor, *gates, after=self._latest([tensor, *gates])
            )
            for place in places:
                reader = self.nodes[self.analysis.costs[place].mix.node]
                reader.replace_input_with(tensor, gated)

    def gate_blocks(self) -> None:
        for place, block in self.analysis.additions.items():
            branch, addition = self.nodes[block.branch], self.nodes[block.addition]
            gate = self.gates[place]
            latest = self._latest([branch, gate])
            gated = self._call(f"block_{place}", BlockGate(self.state), branch, gate, after=latest)
            addition.replace_input_with(branch, gated)

    def _latest(self, nodes: list[fx.Node]) -> fx.Node:
        return max(nodes, key=self.place.__getitem__)


def _channel_axis(analysis: Analysis, source: str) -> tuple[int, int]:
    """Along which axis the channels of a tensor lie (of tokens the last one), and how many."""
    tensor = analysis.labels.tensors[source]
    axis = 1 if tensor.axis is None else tensor.axis
    return axis, tensor.shape[axis]


def attach_gates(
    net: nn.Module,
    example_input: Tensor,
    method: str = "consensus",
    blocks: bool = True,
    channels: bool = True,
    align: int = 1,
) -> GatedNetwork:
    """Put gates on every residual block and channel that can be cut exactly.

    Gates take the network's dtype, device and mode, and start open.

    Args:
        net: any torch.fx-traceable CNN; left unmodified.
        example_input: (n, ...); only shape, dtype and device matter.
        align: kept channel counts of a site are rounded up to a multiple of this.

    Raises:
        Refused: the network cannot be traced.
        ConfigError: an unknown method or an align below 1.
    """
    if align < 1:
        raise ConfigError(f"align must be at least 1, got {align}")
    with paused_collection():
        plain = normalise(net, example_input)
        shape = (1, *example_input.shape[1:])
        analysis = analyse(plain, shape, blocks=blocks, channels=channels)
        return GatedNetwork(plain, analysis, method, align)
