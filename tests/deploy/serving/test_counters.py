"""What a model did, counted: sums that add up, and rates of the last seconds."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from polarprune_deploy.serving import request_errors
from polarprune_deploy.serving.batcher import Batch, Ticket
from polarprune_deploy.serving.counters import (
    DURATIONS,
    FAILURES,
    LATENCY_BOUNDS_MS,
    MOST_RECENT,
    Counters,
)


def batch_of(*rows: int, answered: bool = True) -> Batch:
    tickets = [
        Ticket(
            {}, n, 0, started=1.0, assembled=1.25, computed=2.0, outputs={} if answered else None
        )
        for n in rows
    ]
    return Batch(tickets)


def test_a_batch_counts_one_execution_and_its_images() -> None:
    counters = Counters()
    counters.computed(batch_of(1, 3))
    counters.computed(batch_of(4))
    counters.computed(batch_of(2, answered=False))
    now = counters.snapshot()
    assert (now.executions, now.inferences, now.success) == (2, 8, 0)
    (size,) = now.batches.values()
    assert (size.count, size.input_ns, size.infer_ns) == (2, 500_000_000, 1_500_000_000)


def test_the_parts_of_a_request_add_up_to_the_whole() -> None:
    counters = Counters()
    now = time.monotonic()
    for _ in range(3):
        counters.answered((now - 0.4, now - 0.3, now - 0.25, now - 0.05), rows=2)
    spent = counters.snapshot().duration_ns
    assert set(spent) == set(DURATIONS)
    parts = sum(ns for part, ns in spent.items() if part != "request")
    assert parts == pytest.approx(spent["request"], abs=100)
    assert spent["queue"] == pytest.approx(0.3e9, rel=0.01)
    assert spent["compute_infer"] == pytest.approx(0.6e9, rel=0.01)


def test_every_kind_of_refusal_has_one_of_tritons_reasons() -> None:
    counters = Counters()
    kinds = {
        value
        for name, value in vars(request_errors).items()
        if name.isupper() and isinstance(value, str) and value in request_errors.HTTP_STATUS
    }
    assert len(kinds) == len(request_errors.HTTP_STATUS)
    for kind in kinds:
        counters.failed(kind, 0.5)
    now = counters.snapshot()
    assert set(now.failures) == set(FAILURES)
    assert sum(now.failures.values()) == len(kinds)
    assert now.fail_ns == len(kinds) * 500_000_000
    assert now.failures["REJECTED"] == 2, "full, or late"
    assert (now.failures["CANCELED"], now.failures["BACKEND"]) == (1, 1)


def test_latencies_fall_into_the_bucket_whose_bound_they_do_not_pass() -> None:
    counters = Counters()
    now = time.monotonic()
    for milliseconds in (0.5, 3, 99_999):
        counters.answered((now - milliseconds / 1e3, now, now, now), rows=1)
    counts = counters.snapshot().latency_counts
    filled = [index for index, count in enumerate(counts) if count]
    bounds = [*LATENCY_BOUNDS_MS, float("inf")]
    assert [bounds[index] for index in filled] == [1, 5, float("inf")]


def test_many_threads_lose_no_count() -> None:
    counters = Counters()

    def work(_: int) -> None:
        for _ in range(500):
            counters.computed(batch_of(2))
            counters.answered((0.0, 0.0, 0.0, 0.0), 2)
            counters.failed(request_errors.LATE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    now = counters.snapshot()
    assert (now.executions, now.success, now.failures["REJECTED"]) == (4000, 4000, 4000)
    assert now.inferences == 8000


def test_a_snapshot_stays_as_it_was() -> None:
    counters = Counters()
    before = counters.snapshot()
    counters.computed(batch_of(1))
    counters.failed(request_errors.BROKEN)
    assert (before.executions, before.batches, before.failures["BACKEND"]) == (0, {}, 0)


def test_the_rate_is_of_the_time_whose_answers_are_kept() -> None:
    counters = Counters()
    start = time.monotonic()
    for _ in range(MOST_RECENT + 100):
        moment = time.monotonic()
        counters.answered((moment, moment, moment, moment), 3)
    rate, latencies = counters.recent()
    passed = time.monotonic() - start
    assert len(latencies) == MOST_RECENT
    assert rate >= 3 * MOST_RECENT / passed, "and not of ten seconds"
    assert np.all(np.diff(latencies) >= 0)


def test_a_quiet_model_has_no_rate() -> None:
    assert Counters().recent() == (0.0, [])
    counters = Counters()
    counters.answered((0.0, 0.0, 0.0, 0.0), 5)
    assert counters.recent()[0] == 0.5
