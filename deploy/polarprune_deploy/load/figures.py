"""From raw samples to the row of `bench --server`: percentiles, throughput, counts, remarks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polarprune_deploy.concluding import THROTTLED_SHARE
from polarprune_deploy.load.samples import Outcome, Samples
from polarprune_deploy.statistics import (
    FAMILY_CONFIDENCE,
    Percentile,
    allowed_percentiles,
    median_interval,
)

BLOCKS = 20
"""Of time; throughput is told in each of them, so that there is an interval of it."""
LATE_MS = 1.0
"""A request that was sent so long after it was due was sent late."""
_LATE_SHARE = 0.01
_BUSY_SHARE = 0.8


@dataclass(frozen=True)
class Throughput:
    """Right answers a second in blocks of time: their median, and its interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class LoadFigures:
    """One load on one server, and what was measured.

    Attributes:
        clients: of the closed loop, or the most connections of an open one.
        rate: arrivals a second; None in the closed loop.
        begin, seconds: what is counted is due in this part of the samples; before it is warm-up.
        cpu_seconds: that the client used for all samples.
        stolen_share: of the CPU time, taken away by hypervisor or quota.
        alike: pairs of requests that have the same answer within what is allowed, of `pairs`.
        binary: tensors went as bytes, not as numbers in JSON.
    """

    server: str
    model: str
    scenario: str
    clients: int
    rate: float | None
    batch: int
    samples: Samples
    begin: float
    seconds: float
    cpu_seconds: float
    stolen_share: float
    alike: int
    pairs: int
    binary: bool

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which samples are no warm-up."""
        due = self.samples.due
        return (due >= self.begin) & (due < self.begin + self.seconds)

    def count(self, outcome: Outcome) -> int:
        """How many of the counted requests ended so."""
        return int(np.sum(self.samples.outcomes[self.counted] == outcome))

    @property
    def wrong(self) -> int:
        """Wrong answers, those during the warm-up too."""
        return int(np.sum(self.samples.outcomes == Outcome.WRONG))

    def latencies_ms(self, outcome: Outcome) -> list[float]:
        """From due to answered, of the counted requests that ended so."""
        chosen = self.counted & (self.samples.outcomes == outcome)
        found: list[float] = ((self.samples.done - self.samples.due)[chosen] * 1e3).tolist()
        return found

    @property
    def requests_per_second(self) -> float:
        """Right answers that came in the counted time, over that time."""
        return float(np.sum(self._answers_in_blocks()) / self.seconds)

    def throughput(self) -> Throughput:
        """The same block by block: requests a second."""
        rates = self._answers_in_blocks() * (BLOCKS / self.seconds)
        low, high = median_interval(rates, confidence=FAMILY_CONFIDENCE)
        return Throughput(float(np.median(rates)), float(low), float(high))

    @property
    def late(self) -> int:
        """Requests that went later than they were due, because no connection or CPU was free."""
        return int(np.sum(self._lateness_ms() > LATE_MS))

    @property
    def cpu_us(self) -> float:
        """The client's own work for a request, microseconds of CPU time."""
        return 1e6 * self.cpu_seconds / max(len(self.samples), 1)

    def row(self) -> dict[str, object]:
        """The row of `bench --server --json`."""
        found = allowed_percentiles(self.latencies_ms(Outcome.OK))
        values = {one.percent: one.value for one in found}
        each, lateness = self.throughput(), self._lateness_ms()
        return {
            "server": self.server,
            "model": self.model,
            "scenario": self.scenario,
            "clients": self.clients,
            "rate": self.rate,
            "batch": self.batch,
            "seconds": self.seconds,
            "n": int(np.sum(self.counted)),
            "throughput": self.batch * self.requests_per_second,
            "requests_per_second": self.requests_per_second,
            "requests_per_second_blocks": {
                "median": each.median, "low": each.low, "high": each.high, "blocks": BLOCKS,
            },
            **{f"p{percent}_ms": values.get(percent) for percent in (50, 90, 99)},
            "percentiles": _percentiles_json(found),
            "max_ms": max(self.latencies_ms(Outcome.OK), default=None),
            "ok": self.count(Outcome.OK),
            "rejected": self.count(Outcome.REJECTED),
            "rejected_ms": self._rejected(),
            "failed": self.count(Outcome.FAILED),
            "failures": dict(self.samples.reasons),
            "wrong": self.wrong,
            "late": self.late,
            "latest_ms": float(np.max(lateness, initial=0.0)),
            "client_cpu_us": self.cpu_us,
            "stolen_share": self.stolen_share,
            "encoding": "binary" if self.binary else "json",
            "remarks": list(self.remarks()),
        }  # fmt: skip

    def remarks(self) -> Iterator[str]:
        """What a reader of the figures must know."""
        for reason, count in self.samples.reasons.most_common():
            yield f"{count:,} failed, warm-up included: {reason}"
        counted = int(np.sum(self.counted))
        if self.late > _LATE_SHARE * counted:
            yield (
                f"{self.late:,} of {counted:,} requests went over {LATE_MS:g} ms late, for want of "
                "a connection (--clients) or of CPU; their wait counts as latency"
            )
        if self.cpu_seconds > _BUSY_SHARE * self._elapsed():
            yield "the client itself was busy all the time: the server may be faster than this"
        if self.stolen_share > THROTTLED_SHARE:
            yield f"the machine throttled: {self.stolen_share:.0%} of the CPU time was taken away"
        if self.alike:
            yield (
                f"{self.alike} of {self.pairs} pairs of requests have answers so alike that a "
                "mix-up would go unseen"
            )
        if not self.binary:
            yield "the server takes no binary tensors: numbers went as JSON"

    def columns(self) -> dict[str, object]:
        """The raw samples, for a record: seconds from the start of what is counted."""
        times = {"due": self.samples.due, "sent": self.samples.sent, "done": self.samples.done}
        outcomes = [Outcome(code).name.lower() for code in self.samples.outcomes.tolist()]
        rounded = {
            f"{name}_s": [
                None if value != value else round(value - self.begin, 7)
                for value in column.tolist()
            ]
            for name, column in times.items()
        }
        return {**rounded, "outcome": outcomes}

    def _rejected(self) -> dict[str, float] | None:
        """Latency of what was refused, apart: a refusal says nothing about the network."""
        times = self.latencies_ms(Outcome.REJECTED)
        if not times:
            return None
        found = {f"p{one.percent}": one.value for one in allowed_percentiles(times)}
        return {**found, "max": max(times)}

    def _answers_in_blocks(self) -> NDArray[np.float64]:
        done = self.samples.done[self.samples.outcomes == Outcome.OK] - self.begin
        counts, _ = np.histogram(done[done < self.seconds], BLOCKS, (0.0, self.seconds))
        return counts.astype(np.float64)

    def _lateness_ms(self) -> NDArray[np.float64]:
        """Of the counted requests that were sent at all."""
        late = (self.samples.sent - self.samples.due)[self.counted] * 1e3
        return late[np.isfinite(late)]

    def _elapsed(self) -> float:
        """Seconds from the first request to the last answer."""
        return float(np.nanmax(self.samples.done) - self.samples.due[0])


def _percentiles_json(found: list[Percentile]) -> dict[str, object]:
    return {f"p{one.percent}_ms": one.as_json() for one in found}
