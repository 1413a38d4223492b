"""What a model did, counted as Triton counts: the source of its statistics and metrics.

A request of n images counts n inferences and one request; a batch is one execution. Times are
nanoseconds, summed over requests.
"""

import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from polarprune_deploy.serving.batcher import Batch
from polarprune_deploy.serving.request_errors import BROKEN, CANCELED, LATE, REJECTED

REASONS = {REJECTED: "REJECTED", LATE: "REJECTED", CANCELED: "CANCELED", BROKEN: "BACKEND"}
"""Triton's words for why a request failed; all others are OTHER."""
FAILURES = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
DURATIONS = ("request", "queue", "compute_input", "compute_infer", "compute_output")
LATENCY_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
RECENT_SECONDS = 10.0
MOST_RECENT = 20_000


@dataclass
class BatchSizeCounts:
    """All executions of one batch size."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclass
class Snapshot:
    """The counts at one moment."""

    success: int = 0
    inferences: int = 0
    executions: int = 0
    last_ms: int = 0
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    fail_ns: int = 0
    duration_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DURATIONS, 0))
    batches: dict[int, BatchSizeCounts] = field(default_factory=dict)
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_MS) + 1))


class Counters:
    """Counts of one model and version; safe to use from every thread."""

    def __init__(self) -> None:
        """All zero."""
        self._lock = threading.Lock()
        self._now = Snapshot()
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=MOST_RECENT)

    def computed(self, batch: Batch) -> None:
        """A batch was computed; its requests are counted when they are answered."""
        first = batch.tickets[0]
        if first.outputs is None:
            return
        with self._lock:
            self._now.executions += 1
            self._now.inferences += batch.rows
            size = self._now.batches.setdefault(batch.rows, BatchSizeCounts())
            size.count += 1
            size.input_ns += int((first.assembled - first.started) * 1e9)
            size.infer_ns += int((first.computed - first.assembled) * 1e9)

    def answered(self, ticket_times: tuple[float, float, float, float], rows: int) -> None:
        """A request got its result.

        Args:
            ticket_times: arrived, started, assembled and computed, seconds of `time.monotonic`.
            rows: images.
        """
        arrived, started, assembled, computed = ticket_times
        now = time.monotonic()
        with self._lock:
            counts, spent = self._now, self._now.duration_ns
            counts.success += 1
            counts.last_ms = int(time.time() * 1000)
            spent["request"] += int((now - arrived) * 1e9)
            spent["queue"] += int((started - arrived) * 1e9)
            spent["compute_input"] += int((assembled - started) * 1e9)
            spent["compute_infer"] += int((computed - assembled) * 1e9)
            spent["compute_output"] += int((now - computed) * 1e9)
            counts.latency_counts[bisect_left(LATENCY_BOUNDS_MS, (now - arrived) * 1e3)] += 1
            self._recent.append((now, now - arrived, rows))

    def failed(self, kind: str, seconds: float = 0.0) -> None:
        """A request for this model got an error, one of the words of `request_errors`."""
        with self._lock:
            self._now.failures[REASONS.get(kind, "OTHER")] += 1
            self._now.fail_ns += int(seconds * 1e9)

    def snapshot(self) -> Snapshot:
        """A copy."""
        with self._lock:
            now = self._now
            return Snapshot(
                now.success, now.inferences, now.executions, now.last_ms, dict(now.failures),
                now.fail_ns, dict(now.duration_ns),
                {rows: BatchSizeCounts(**vars(c)) for rows, c in now.batches.items()},
                list(now.latency_counts),
            )  # fmt: skip

    def recent(self) -> tuple[float, list[float]]:
        """Images a second and the latencies, seconds, of the last ten seconds.

        Where more was answered in them than is kept: of the time that is.
        """
        now = time.monotonic()
        with self._lock:
            while self._recent and self._recent[0][0] < now - RECENT_SECONDS:
                self._recent.popleft()
            entries = list(self._recent)
        kept = RECENT_SECONDS if len(entries) < MOST_RECENT else max(now - entries[0][0], 1e-6)
        return sum(entry[2] for entry in entries) / kept, sorted(entry[1] for entry in entries)
