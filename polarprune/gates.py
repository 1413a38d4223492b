"""A network with gates: where training, decisions and collapse meet."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from polarprune.budget import Budget
from polarprune.collecting import paused_collection
from polarprune.decisions import (
    check_decisions,
    check_reachable,
    choose_decisions,
    find_starved,
    macs_of,
    smallest_decisions,
)
from polarprune.errors import ConfigError, TrainingError
from polarprune.gate_heat import heat_of
from polarprune.gate_insertion import base_placement, channel_axis, insert_gates, plan_gates
from polarprune.gating import GateState, SiteGate, SourceGate
from polarprune.graph.cost import CostCircuit, count_parameters
from polarprune.graph.cut import Cut, Origin, cut_graph
from polarprune.graph.layers import set_mode
from polarprune.graph.sites import Analysis, GateSite, Refusal
from polarprune.graph.tracing import Draft, copied_graph
from polarprune.graph.weight_folding import fold_weights
from polarprune.methods import GateOutput, GateRequest, Method, Units, naming
from polarprune.narrowing import Shell, fill, place_gates, usual_features

# All gates together: at most this share of the network's parameters (the design says under 5 %).
_GATE_PARAMETER_SHARE = 0.04


class GatedNetwork(nn.Module):
    """A network whose residual blocks and channels can be closed. Made by attach_gates.

    Attributes:
        sites: where gates sit.
        refused: what could not be gated, in words.
        align: kept channel counts are rounded up to a multiple of this.
        dense_parameters: of the network before anything was cut.
        plain_graph: its graph; decisions are about it.
    """

    def __init__(
        self, plain: fx.GraphModule, analysis: Analysis, method: Method, align: int
    ) -> None:
        """Insert the method's gates into a normalised graph."""
        super().__init__()
        self.method = method
        self.align = align
        self.analysis = analysis
        self.state = GateState.of(method)
        self.circuit = CostCircuit(analysis, plain.graph)
        self.dense_parameters = count_parameters(plain)
        # Of the whole network, which decisions are about, and of what is left of it by now.
        self.plain_graph = self._present_graph = copied_graph(plain.graph)
        self._shell: Shell | None = None
        self._earlier: dict[str, Origin] = {}
        like = next((p for p in plain.parameters()), torch.zeros(()))
        placement = base_placement(analysis, self.state, like.dtype)
        self._plan = plan_gates(self.sites)
        starts = torch.cumsum(torch.tensor([0, *self._plan.sizes]), 0).tolist()
        self._order = torch.tensor(
            [
                starts[number] + first + unit
                for site, (number, first) in zip(self.sites, self._plan.of_site, strict=True)
                for unit in range(site.units)
            ],
            dtype=torch.long,
        )
        # Each site counts alike, or the few block gates would not be heard among the channels.
        self._share = torch.tensor(
            [1 / (site.units * len(self.sites)) for site in self.sites for _ in range(site.units)]
        )
        gates = self._make_gates(int(_GATE_PARAMETER_SHARE * self.dense_parameters))
        self.body = insert_gates(plain, placement, self._plan, gates, self.state)
        set_mode(self, self.body.training)

    def _make_gates(self, parameter_budget: int) -> list[SourceGate]:
        requests = [
            GateRequest(
                units,
                channel_axis(self.analysis.labels, source)[1],
                tuple((site.kind, site.units) for site in self.sites if site.source == source),
            )
            for source, units in zip(self._plan.sources, self._plan.sizes, strict=True)
        ]
        with naming(self.state.method, "make_gates", ConfigError):
            gates = list(self.method.make_gates(requests, parameter_budget))
        if len(gates) != len(requests):
            raise ConfigError(
                f"method {self.state.method!r} made {len(gates)} gates for {len(requests)} "
                "requests; make_gates must return one a request"
            )
        return [
            SourceGate(self.state, gate, request.units)
            for gate, request in zip(gates, requests, strict=True)
        ]

    @property
    def sites(self) -> list[GateSite]:
        """Every gate site, blocks first, in graph order."""
        return self.analysis.sites

    @property
    def refused(self) -> list[Refusal]:
        """What could not be gated, and why."""
        return self.analysis.refused

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs with the gates as they are (open, searching or frozen).

        Raises:
            TrainingError: OnePass trains a smaller network by now, and this call is to train.
        """
        if self.state.replaced and self.training and torch.is_grad_enabled():
            raise TrainingError(
                "this network has been cut and is not trained any more: call one.network, and "
                "compile or wrap it anew (DDP) once one.step() has returned a record"
            )
        return self.body(x)  # type: ignore[no-any-return]

    def gate_modules(self) -> list[SourceGate]:
        """One for each tensor that gates look at."""
        count = len(self._plan.sources)
        return [self.body.get_submodule(f"gating.gate_{i}") for i in range(count)]  # type: ignore[misc]

    def site_gates(self) -> list[SiteGate]:
        """The gate of each site, in the order of `sites`."""
        modules = self.gate_modules()
        return [
            SiteGate(modules[number], slice(first, first + site.units))
            for site, (number, first) in zip(self.sites, self._plan.of_site, strict=True)
        ]

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the gates; all others are the network's."""
        for gate in self.gate_modules():
            yield from gate.parameters()

    def gate_macs(self) -> int:
        """MACs that all gates add for one image while they search."""
        return sum(
            module.in_features * module.out_features
            for gate in self.gate_modules()
            if not gate.all_gone
            for module in gate.modules()
            if isinstance(module, nn.Linear)
        )

    def plain(self, *, draft: bool = False) -> fx.GraphModule:
        """The network without gates, sharing its layers with this one.

        Args:
            draft: only to be rewritten, not to be called.
        """
        graph = copied_graph(self._present_graph)
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
        """What was decided for each site and the last batch (search mode only)."""
        return [gate.output for gate in self.site_gates()]

    def units(self) -> Units:
        """The same of all units, one after the other in the order of `sites`, without values."""
        outputs = [gate.last_output() for gate in self.gate_modules()]
        order = self._order.to(outputs[0].probability.device)
        probability = torch.cat([output.probability for output in outputs])[order]
        heat = heat_of(self.body, outputs) if self.state.senses else ()
        return Units(probability, self.openness(), self._share.to(order.device), heat)

    def openness(self) -> Float[Tensor, " g"]:
        """Of all units the batch mean of the images' own values, in the order of `sites`."""
        each = torch.cat([gate.last_output().openness for gate in self.gate_modules()])
        return each[self._order.to(each.device)]

    def expected_macs_ratio(self) -> Float[Tensor, ""]:
        """Expected MACs of the last batch over the dense ones, differentiable."""
        return self.expected_share(self.circuit, self.openness())

    def by_site(self, values: Tensor) -> list[Tensor]:
        """Per site (units,), of values that lie one gate module after the other."""
        ordered = values[self._order.to(values.device)]
        return list(torch.split(ordered, [site.units for site in self.sites]))

    def expected_share(
        self, circuit: CostCircuit, openness: Float[Tensor, " g"]
    ) -> Float[Tensor, ""]:
        """What a circuit expects to be kept, over what the dense network has of it."""
        by_site = torch.split(openness, [site.units for site in self.sites])
        return torch.as_tensor(circuit.evaluate(list(by_site)).macs) / circuit.dense_macs

    def set_decisions(self, decisions: dict[str, Tensor]) -> None:
        """Freeze the gates; True = open. Sites that are left out are open.

        Raises:
            ConfigError: an unknown site, a wrong number of units, an open unit that has been cut
                out, or decisions that leave a live layer without inputs; the site is named.
        """
        checked = self._complete(decisions)
        for module, weights in zip(self.gate_modules(), self._weights_by_module(), strict=True):
            module.weight.copy_(weights)
        for site, gate in zip(self.sites, self.site_gates(), strict=True):
            gate.frozen.copy_(checked[site.name])
        self.state.mode = "frozen"

    def open_weights(self) -> list[Tensor]:
        """Per site (units,): what units are multiplied by that stay open; 1 where gates are 0 or 1.

        The frozen ones; of gates that search, those that they would be frozen with by now.
        """
        by_module = self._weights_by_module()
        return [
            by_module[number][first : first + site.units]
            for site, (number, first) in zip(self.sites, self._plan.of_site, strict=True)
        ]

    def _weights_by_module(self) -> list[Tensor]:
        modules = self.gate_modules()
        if self.state.mode == "frozen":
            return [gate.weight for gate in modules]
        if self.state.mode == "open" or not self.method.weighs:
            return [torch.ones_like(gate.weight) for gate in modules]
        # Above 0, or an open unit would be a closed one.
        return [
            self.method.open_weights(gate.gate)
            .detach()
            .clamp_min(torch.finfo(gate.weight.dtype).tiny)
            for gate in modules
        ]

    def fold(self) -> None:
        """Put the weights of frozen open units into the layers around them, in place.

        Gates are 0 or 1 from then on. A collapsed network is folded without this.

        Exactness: each weight of a layer is rounded once, to the layer's dtype.
        """
        if self.state.mode != "frozen":
            raise ConfigError(
                "gates that are not frozen have no weights to fold; call set_decisions first"
            )
        fold_weights(self.plain(draft=True), self._earlier, self.analysis, self.open_weights())
        for gate in self.gate_modules():
            gate.weight.fill_(1.0)

    def macs_budget(self, share: float) -> Budget:
        """Keep at most this share of the dense MACs."""
        circuit = self.circuit
        return Budget(
            "MACs", share, circuit.dense_macs, self.macs_of,
            lambda openness: self.expected_share(circuit, openness),
        )  # fmt: skip

    def macs_of(self, decisions: list[Tensor]) -> int:
        """MACs for one image of the network that these decisions leave (site order)."""
        return macs_of(self.circuit, decisions)

    def decisions(self, budget: Budget | float | None = None) -> dict[str, Tensor]:
        """One bool tensor (units,) a site: the frozen ones, or what the gates favour by now.

        Args:
            budget: what may be kept; a number is a share of the dense MACs. Without one, what is
                likelier open than closed stays.
        """
        if isinstance(budget, int | float):
            budget = self.macs_budget(budget)
        gates = self.site_gates()
        if self.state.mode == "frozen" and budget is None:
            frozen = [gate.frozen.cpu().clone() for gate in gates]
            return {site.name: kept for site, kept in zip(self.sites, frozen, strict=True)}
        scores = [gate.running.detach().cpu().masked_fill(gate.gone.cpu(), -1) for gate in gates]
        return self._fed(lambda: choose_decisions(self.analysis, scores, self.align, budget))

    def check_reachable(self, budget: Budget) -> None:
        """Refuse a budget that no decisions meet.

        Raises:
            ConfigError: what the smallest network keeps is said.
        """
        self._fed(lambda: smallest_decisions(self.analysis, self.align))
        check_reachable(self.analysis, self.align, budget)

    def _fed(self, choose: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Choose until nothing starves; what was found to need an open unit is remembered."""
        while True:
            chosen = choose()
            starved = find_starved(self.analysis, self.circuit, self.plain_graph, chosen)
            if starved is None:
                return chosen
            assert starved.sites not in self.analysis.feeding
            self.analysis.feeding.append(starved.sites)

    def narrow(self, decisions: dict[str, Tensor], images: Tensor | None = None) -> Cut:
        """Cut closed units out of the network for good; the other gates stay, and go on.

        Sites and units keep their names and numbers. What else goes (units that nothing reads any
        more) counts as closed too.

        Args:
            decisions: per site a bool tensor (units,), False = out; sites left out stay.
            images: (n, ...); gates that looked at what is cut see its mean over these from now on,
                without images zeros.

        Returns:
            Where each of the network's tensors comes from in the network as it was.

        Raises:
            ConfigError: as set_decisions.
            Refused: this network can only be cut at the end (collapse); nothing has changed.
        """
        checked = self._complete(decisions)
        shell = self._shell or Shell(self.plain(draft=True), self.analysis)
        with torch.no_grad(), paused_collection():
            whole = shell.cut(checked)
            filled = fill(whole, self.body, self._earlier)
            small = filled.graph_module
            set_mode(small, self.training)
            watcher = copy.deepcopy(self).eval()
            watcher.search()
            usual = usual_features(watcher, self.analysis.labels, images)
            placement = place_gates(
                small, whole, self.analysis, self.plain_graph, self.state, usual.__getitem__
            )
            self._present_graph = copied_graph(small.graph)
            self.body = insert_gates(small, placement, self._plan, self.gate_modules(), self.state)
        left = torch.from_numpy(np.concatenate([np.zeros(0, bool), *placement.left(self.sites)]))
        in_modules = torch.empty_like(left)
        in_modules[self._order] = left
        for gate, kept in zip(
            self.gate_modules(), torch.split(in_modules, self._plan.sizes), strict=True
        ):
            gate.cut(~kept)
        self._shell, self._earlier = shell, whole.origins
        return filled

    def cut(self, decisions: dict[str, Tensor]) -> Cut:
        """What these decisions leave, as a network of its own without gates, weights folded."""
        with torch.no_grad(), paused_collection():
            if self._shell is None:
                plain = self.plain(draft=True)
                cut = whole = cut_graph(plain, self.analysis, decisions, shared_with=self.body)
            else:
                whole = self._shell.cut(decisions)
                cut = fill(whole, self.body, self._earlier)
            if self.method.weighs:
                fold_weights(cut.graph_module, whole.origins, self.analysis, self.open_weights())
            return cut

    def gone(self) -> dict[str, Tensor]:
        """One bool tensor (units,) a site: what has been cut out of the network."""
        gates = self.site_gates()
        return {s.name: g.gone.cpu().clone() for s, g in zip(self.sites, gates, strict=True)}

    def _complete(self, decisions: dict[str, Tensor]) -> dict[str, Tensor]:
        """Decisions for all sites, checked; what is gone is closed."""
        gone = self.gone()
        complete = {name: ~cut for name, cut in gone.items()} | decisions
        checked = check_decisions(self.analysis, self.circuit, self.plain_graph, complete)
        for name, cut in gone.items():
            again = torch.nonzero(checked[name] & cut).flatten().tolist()
            if again:
                raise ConfigError(
                    f"site {name!r}: units {again} have been cut out of the network; close them"
                )
        return checked
