"""The result of a latency comparison: raw samples, and what was concluded from them."""

from dataclasses import asdict, dataclass

from polarprune_deploy.statistics import PERCENTILE_FLOORS, RatioInterval, Verdict, percentile


@dataclass(frozen=True)
class Sample:
    """One timed block: `repetitions` runs one after the other."""

    batch: int
    round: int
    position: int
    network: str
    repetitions: int
    elapsed_ns: int

    @property
    def run_ms(self) -> float:
        """Mean time of one run in this block."""
        return self.elapsed_ns / self.repetitions / 1e6


@dataclass(frozen=True)
class WarmUp:
    """What it took until the runs of one network were steady: its cold start.

    `prepare_ms` is the time to bind buffers, the very first run included.
    """

    network: str
    load_ms: float
    prepare_ms: float
    runs: int
    steady_run_ms: float
    stable: bool


@dataclass(frozen=True)
class Comparison:
    """One candidate against one network, at one batch size."""

    backend: str
    device: str
    precision: str
    batch: int
    against: str
    candidate: str
    against_ms: float
    ms: float
    effect: RatioInterval
    control: RatioInterval
    verdict: Verdict
    reason: str
    settings: dict[str, str | int | float]
    sha256: dict[str, str]
    stolen_share: float
    warm_ups: tuple[WarmUp, ...]
    samples: tuple[Sample, ...]

    @property
    def label(self) -> str:
        """What was measured, to stand beside every number."""
        where = "CPU, not a GPU claim" if self.device == "cpu" else self.device
        return f"host latency, warm caches ({where})"

    def row(self) -> dict[str, object]:
        """The row of `bench --json`."""
        return {
            "backend": self.backend,
            "device": self.device,
            "precision": self.precision,
            "batch": self.batch,
            "against_ms": self.against_ms,
            "ms": self.ms,
            **self.effect.as_json(),
            "verdict": self.verdict,
            "control": self.control.as_json(),
        }

    def conclusions(self) -> dict[str, object]:
        """Everything but the raw samples, for a record."""
        return {
            "label": self.label,
            **self.row(),
            "against": self.against,
            "candidate": self.candidate,
            "confidence": self.effect.confidence,
            "control_confidence": self.control.confidence,
            "rounds": self.effect.rounds,
            "reason": self.reason,
            "settings": self.settings,
            "sha256": self.sha256,
            "stolen_share": self.stolen_share,
            "spread": self.spread(),
            "warm_ups": [asdict(warm_up) for warm_up in self.warm_ups],
        }

    def sentence(self) -> str:
        """The comparison in one line for people."""
        effect, control = self.effect, self.control
        return (
            f"batch {self.batch}: {self.against_ms:.3f} ms -> {self.ms:.3f} ms, "
            f"{effect.speedup:.3f}x [{effect.ci_low:.3f}, {effect.ci_high:.3f}], "
            f"{self.verdict} ({self.reason}; control {control.speedup:.3f} "
            f"[{control.ci_low:.3f}, {control.ci_high:.3f}]; n = {effect.rounds} rounds; "
            f"{self.label})"
        )

    def spread(self) -> dict[str, dict[str, float]]:
        """Per network: number of blocks, the percentiles that so many allow, and the maximum."""
        spread: dict[str, dict[str, float]] = {}
        for network in dict.fromkeys(sample.network for sample in self.samples):
            times = [sample.run_ms for sample in self.samples if sample.network == network]
            allowed = [p for p, floor in PERCENTILE_FLOORS.items() if len(times) >= floor]
            spread[network] = {
                "n": len(times),
                **{f"p{p}_ms": percentile(times, p).value for p in allowed},
                "max_ms": max(times),
            }
        return spread
