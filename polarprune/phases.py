"""When one pass searches, cuts and settles."""

from dataclasses import dataclass

from polarprune.errors import ConfigError

_MOST_CUTS = 8  # each costs a check and, where the network is compiled, a recompile


@dataclass(frozen=True)
class PhaseSteps:
    """When things happen, as numbers of steps done."""

    search: int
    settle: int
    cuts: frozenset[int]

    @property
    def search_steps(self) -> int:
        """How many steps the search takes."""
        return self.settle - self.search


@dataclass(frozen=True)
class Phases:
    """When things happen, as fractions of all steps (design: one pass).

    Attributes:
        search: gates start to decide; before it all are open and cost nothing.
        settle: decisions freeze and everything closed is removed.
        cuts: where what has been closed for long is cut out of the network while the other gates
            go on searching; between search and settle, at most 8. None by default: in these
            phases cuts saved MACs in training (0.64 of dense in place of 0.70), and no gain in
            accuracy was shown (benchmarks/results/tuning, n = 1).
    """

    search: float = 0.1
    settle: float = 0.4
    cuts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse cuts that would never be made.

        Raises:
            ConfigError: too many, or one that lies outside of the search; a search that is none.
        """
        if not 0 <= self.search < self.settle <= 1:
            raise ConfigError(
                "a search begins at 0 or later and settles after that, at 1 at the latest; got "
                f"search {self.search:g} and settle {self.settle:g}"
            )
        if len(self.cuts) > _MOST_CUTS:
            raise ConfigError(f"at most {_MOST_CUTS} cuts, got {len(self.cuts)}")
        for at in self.cuts:
            if not self.search < at < self.settle:
                raise ConfigError(
                    f"a cut is made between search {self.search:g} and settle {self.settle:g}, "
                    f"got {at:g}"
                )

    def in_steps(self, total_steps: int) -> PhaseSteps:
        """The same for a training of so many steps; a search takes one at least.

        Raises:
            ConfigError: a cut would fall on the first or the last step of the search.
        """
        search = min(int(self.search * total_steps), total_steps - 1)
        settle = max(search + 1, int(self.settle * total_steps))
        cuts = frozenset(int(at * total_steps) for at in self.cuts)
        for step in cuts:
            if not search < step < settle:
                raise ConfigError(
                    f"with {total_steps} steps a cut falls on step {step}, where the search "
                    "begins or ends; train longer or give other cuts"
                )
        return PhaseSteps(search, settle, cuts)
