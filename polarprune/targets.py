"""From the user's target, or a method that takes none, to a budget."""

from polarprune.budget import Budget
from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork
from polarprune.latency_table import LatencyTable


def budget_of(
    gated: GatedNetwork,
    *,
    target: float | None,
    target_params: float | None,
    target_latency: float | None = None,
    latency_table: LatencyTable | None = None,
) -> Budget:
    """The bound on MACs, parameters or latency; of a method that takes no target all of the MACs.

    Raises:
        ConfigError: none or several are given, or one where none may be; it cannot be reached; a
            bound on latency without a table, or a table of another network.
    """
    given = [share for share in (target, target_params, target_latency) if share is not None]
    if not gated.method.bounded:
        if given:
            raise ConfigError(f"method {gated.method.name} sets the cost itself: give no target")
        return gated.macs_budget(1.0)
    if len(given) != 1:
        raise ConfigError(
            "give one of: a target (of the MACs), target_params (of the parameters), "
            "target_latency (of the latency)"
        )
    if (target_latency is None) != (latency_table is None):
        raise ConfigError("target_latency and latency_table go together: give both or neither")
    if target_latency is not None:
        assert latency_table is not None
        budget = gated.latency_budget(target_latency, latency_table)
    elif target_params is not None:
        budget = gated.parameters_budget(target_params)
    else:
        assert target is not None
        budget = gated.macs_budget(target)
    gated.check_reachable(budget)
    return budget
