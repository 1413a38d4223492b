"""From the user's target, or a method that takes none, to a budget."""

from polarprune.budget import Budget
from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork


def budget_of(gated: GatedNetwork, target: float | None, target_params: float | None) -> Budget:
    """The bound on MACs or on parameters; of a method that takes no target all of the MACs.

    Raises:
        ConfigError: none or both are given, or one where none may be; it cannot be reached.
    """
    if not gated.method.bounded:
        if target is not None or target_params is not None:
            raise ConfigError(f"method {gated.method.name} sets the cost itself: give no target")
        return gated.macs_budget(1.0)
    if (target is None) == (target_params is None):
        raise ConfigError("give either a target (of the MACs) or target_params (of the parameters)")
    if target_params is not None:
        budget = gated.parameters_budget(target_params)
    else:
        assert target is not None
        budget = gated.macs_budget(target)
    gated.check_reachable(budget)
    return budget
