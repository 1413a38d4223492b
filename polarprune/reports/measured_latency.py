"""Latency as a page shows it; polarprune_deploy measures it, and reads its own records."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """How many times as fast, with its interval."""

    speedup: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class LatencyRow:
    """One network against another at one batch size.

    Attributes:
        against_ms / ms: of a batch, in milliseconds; the other's and the pruned network's.
        effect: the other's time over the pruned network's, paired round by round.
        control: the pruned network against itself.
        confidence: probability that the interval of `effect` holds the true ratio.
        verdict / reason: in the record's words.
        label: what kind of latency it is.
    """

    backend: str
    device: str
    precision: str
    batch: int
    against: str
    candidate: str
    against_ms: float
    ms: float
    effect: Ratio
    control: Ratio
    confidence: float
    rounds: int
    verdict: str
    reason: str
    label: str


@dataclass(frozen=True)
class MeasuredLatency:
    """All rows of one record, and the machine they were taken on (None where it did not say)."""

    cpu: str | None
    platform: str | None
    usable_cpus: int | None
    packages: dict[str, str | None]
    rows: tuple[LatencyRow, ...]
