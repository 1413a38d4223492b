"""What a network may keep: a share of its MACs, of its parameters, or of its latency."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polarprune.errors import ConfigError
from polarprune.methods import Method, called
from polarprune.option_values import check_share

Quantity = Literal["MACs", "parameters", "latency"]
OPTIONS: dict[Quantity, str] = {
    "MACs": "--target",
    "parameters": "--target-params",
    "latency": "--target-latency",
}


def check_targets(given: Mapping[str, float], has_table: bool, method: Method) -> None:
    """Refuse bounds that contradict each other or the method; no bound at all is not looked at.

    Args:
        given: share by option.
        has_table: whether a latency table is given.

    Raises:
        ConfigError: the options are named.
    """
    for option, share in given.items():
        check_share(option, share)
        if share != 1 and not method.bounded:
            raise ConfigError(
                f"{option} cannot be given with method {called(method)!r}, which sets the cost "
                "itself; leave it out"
            )
    if len(given) > 1:
        raise ConfigError(f"give {' or '.join(given)}, not {'both' if len(given) == 2 else 'all'}")
    if (OPTIONS["latency"] in given) != has_table:
        raise ConfigError("--target-latency and --latency-table go together: give both or neither")


@dataclass(frozen=True)
class Budget:
    """A bound on a quantity, exact where decisions are made and differentiable in between.

    Attributes:
        share: of the dense network's, in (0, 1].
        dense: what the dense network has; latency in nanoseconds.
        cost: what the network has that these decisions leave (bool tensors, site order), exactly.
        expected: expected over dense cost, of the openness of all units in site order.
    """

    quantity: Quantity
    share: float
    dense: int
    cost: Callable[[list[Tensor]], int]
    expected: Callable[[Float[Tensor, " g"]], Float[Tensor, ""]]

    def __post_init__(self) -> None:
        """Refuse a share out of range.

        Raises:
            ConfigError: the option is named.
        """
        check_share(OPTIONS[self.quantity], self.share)

    @property
    def bound(self) -> float:
        """The most that may be kept."""
        return self.share * self.dense
