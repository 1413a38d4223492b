"""Which loads are made on a server: scenario, clients or rates, and for how long."""

from dataclasses import dataclass
from math import isfinite

from polarprune.errors import ConfigError
from polarprune.option_values import check_choice, check_range
from polarprune_deploy.load.schedule import poisson_arrivals

SCENARIOS = ("closed", "poisson")
CLIENTS = (8,)
CONNECTIONS = 256
MOST_CONNECTIONS = 512
SECONDS = 10.0
SHORTEST_SECONDS = 0.2
LONGEST_SECONDS = 3600
FEWEST = 20
"""Arrivals of one load, on average."""


@dataclass(frozen=True)
class LoadPlan:
    """Which loads are made, one after the other.

    Attributes:
        scenario: "closed", or "poisson".
        clients: of the closed loop, one load each; of Poisson's one number, the most connections.
        rates: of Poisson's, requests a second, one load each.
        seconds: counted of each load; a warm-up goes before.
        batches: images in a request, one load each; None takes what the model is fixed to, or 1.
        image_size: where the model leaves it open, pixels.
        seed: decides requests and arrivals.
    """

    scenario: str = "closed"
    clients: tuple[int, ...] | None = None
    rates: tuple[float, ...] = ()
    seconds: float = SECONDS
    batches: tuple[int, ...] | None = None
    image_size: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse what is out of range, or means nothing.

        Raises:
            ConfigError: which value.
        """
        check_choice("--scenario of a --server", self.scenario, SCENARIOS)
        if (self.scenario == "poisson") != bool(self.rates):
            raise ConfigError("--rate and --scenario poisson need each other; give both or none")
        if not all(isfinite(rate) and rate > 0 for rate in self.rates):
            raise ConfigError(f"--rate must be above 0, got {list(self.rates)}")
        check_range("--seconds", self.seconds, SHORTEST_SECONDS, LONGEST_SECONDS)
        clients = self.clients or CLIENTS
        if not all(1 <= count <= MOST_CONNECTIONS for count in clients):
            raise ConfigError(
                f"--clients must be from 1 to {MOST_CONNECTIONS}, got {list(clients)}"
            )
        if self.scenario == "poisson" and len(clients) > 1:
            raise ConfigError("--clients is one bound on connections with --scenario poisson")
        if self.batches is not None and min(self.batches, default=0) < 1:
            raise ConfigError(f"--batch must be at least 1, got {list(self.batches)}")
        for rate in self.rates:
            if rate * self.seconds < FEWEST:
                raise ConfigError(
                    f"{rate:g} requests a second for {self.seconds:g} s are fewer than {FEWEST} "
                    "requests; use more --seconds"
                )
            poisson_arrivals(rate, self.seconds + self.warm_up, self.seed)

    @property
    def warm_up(self) -> float:
        """Seconds before anything counts: a tenth, from half a second to two."""
        return min(max(self.seconds / 10, 0.5), 2.0)

    def loads(self) -> list[tuple[int, float | None]]:
        """Clients (or most connections) and rate of each load."""
        if self.scenario == "poisson":
            (bound,) = self.clients or (CONNECTIONS,)
            return [(bound, rate) for rate in self.rates]
        return [(clients, None) for clients in self.clients or CLIENTS]
