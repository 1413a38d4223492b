"""From the user's target, or a method that takes none, to a budget."""

import torch
from jaxtyping import Float
from torch import Tensor

from polarprune.budget import OPTIONS, Budget, check_targets
from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork
from polarprune.graph.cost import CostCircuit, count_parameters
from polarprune.latency_cost import NANOSECONDS, LatencyCircuit
from polarprune.latency_table import LatencyTable


def budget_of(
    gated: GatedNetwork,
    *,
    target: float | None,
    target_params: float | None,
    target_latency: float | None,
    latency_table: LatencyTable | None,
) -> Budget:
    """The bound on MACs, parameters or latency; of a method that takes no target all of the MACs.

    Raises:
        ConfigError: none or several are given, or one where none may be; it cannot be reached; a
            bound on latency without a table, or a table of another network.
    """
    shares = zip(OPTIONS.values(), (target, target_params, target_latency), strict=True)
    given = {option: share for option, share in shares if share is not None}
    check_targets(given, latency_table is not None, gated.method)
    if not gated.method.bounded:
        return gated.macs_budget(1.0)
    if not given:
        raise ConfigError("there is no target; give target=0.5 to keep half of the MACs")
    if target_latency is not None:
        assert latency_table is not None
        budget = latency_budget(gated, target_latency, latency_table)
    elif target_params is not None:
        budget = parameters_budget(gated, target_params)
    else:
        assert target is not None
        budget = gated.macs_budget(target)
    gated.check_reachable(budget)
    return budget


def latency_budget(gated: GatedNetwork, share: float, table: LatencyTable) -> Budget:
    """Keep at most this share of the dense network's latency, as the table predicts it.

    Raises:
        ConfigError: the table is another network's.
    """
    circuit = LatencyCircuit(gated.analysis, gated.circuit, table)

    def expected(openness: Float[Tensor, " g"]) -> Float[Tensor, ""]:
        by_site = torch.split(openness, [site.units for site in gated.sites])
        ms = circuit.expected_ms(list(by_site), gated.align)
        return torch.as_tensor(ms) / circuit.dense_ms

    return Budget(
        "latency", share, round(circuit.dense_ms * NANOSECONDS),
        lambda decisions: round(circuit.exact_ms(decisions) * NANOSECONDS), expected,
    )  # fmt: skip


def parameters_budget(gated: GatedNetwork, share: float) -> Budget:
    """Keep at most this share of the dense network's parameters.

    Counted exactly, on the network that decisions leave; what is expected in between leaves
    normalisations and biases out.
    """

    def weights_of(layer: str) -> int:
        weight = gated.body.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        return weight.numel()

    def parameters_of(decisions: list[Tensor]) -> int:
        named = {site.name: d for site, d in zip(gated.sites, decisions, strict=True)}
        return count_parameters(gated.cut(named).graph_module)

    weights = {cost.mix.layer: weights_of(cost.mix.layer) for cost in gated.analysis.costs}
    circuit = CostCircuit(gated.analysis, gated.plain_graph, weights)
    return Budget(
        "parameters", share, gated.dense_parameters, parameters_of,
        lambda openness: gated.expected_share(circuit, openness),
    )  # fmt: skip
