"""What a network may keep: a share of its MACs, of its parameters, or of its latency."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polarprune.errors import ConfigError

Quantity = Literal["MACs", "parameters", "latency"]
OPTIONS: dict[Quantity, str] = {
    "MACs": "--target",
    "parameters": "--target-params",
    "latency": "--target-latency",
}


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
        if not 0 < self.share <= 1:
            option = OPTIONS[self.quantity]
            raise ConfigError(f"{option} must be above 0 and at most 1, got {self.share:g}")

    @property
    def bound(self) -> float:
        """The most that may be kept."""
        return self.share * self.dense
