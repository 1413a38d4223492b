"""The decisions of the batcher, as functions of what waits: no clock, no threads."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarprune_deploy.serving.batch_curve import BatchCurve
from polarprune_deploy.serving.batch_policy import FOREVER, BatchPolicy

NOW = 100.0
CURVE = BatchCurve((1, 2, 4, 8), (0.010, 0.012, 0.016, 0.024))


class Waiting(NamedTuple):
    """One request that waits."""

    rows: int
    deadline: float


@st.composite
def policies(draw: st.DrawFn) -> BatchPolicy:
    steps = draw(st.lists(st.floats(0.001, 0.05), min_size=4, max_size=4))
    seconds = tuple(sum(steps[: i + 1]) for i in range(4))
    curve = BatchCurve((1, 2, 4, 8), seconds, draw(st.booleans()))
    return BatchPolicy(draw(st.integers(1, 12)), draw(st.floats(0, 0.1)), curve)


deadlines = st.one_of(st.just(FOREVER), st.floats(NOW - 0.1, NOW + 0.4))
queues = st.lists(st.builds(Waiting, st.integers(1, 6), deadlines), min_size=1, max_size=12)


def in_time(policy: BatchPolicy, rows: int, deadline: float) -> bool:
    return NOW + policy.seconds_for(rows) <= deadline


def harmless(policy: BatchPolicy, company: list[Waiting]) -> bool:
    """Whether nobody in this company is late who would be in time alone."""
    rows = sum(ticket.rows for ticket in company)
    return all(
        in_time(policy, rows, ticket.deadline)
        for ticket in company
        if in_time(policy, ticket.rows, ticket.deadline)
    )


@given(policies(), queues)
def test_a_batch_is_the_longest_head_of_the_queue_that_fits_and_harms_nobody(
    policy: BatchPolicy, queue: list[Waiting]
) -> None:
    count = policy.company([t.rows for t in queue], [t.deadline for t in queue], NOW)
    fitting = 1
    for length in range(2, len(queue) + 1):  # the slow way
        head = queue[:length]
        if sum(ticket.rows for ticket in head) > policy.size or not harmless(policy, head):
            break
        fitting = length
    assert count == fitting


@given(policies(), queues)
def test_only_a_request_that_is_too_large_by_itself_passes_the_size(
    policy: BatchPolicy, queue: list[Waiting]
) -> None:
    count = policy.company([t.rows for t in queue], [t.deadline for t in queue], NOW)
    assert 1 <= count <= len(queue)
    assert count == 1 or sum(ticket.rows for ticket in queue[:count]) <= policy.size


def test_company_that_would_make_the_first_late_stays_behind() -> None:
    policy = BatchPolicy(8, 0.0, CURVE)
    assert policy.company([1, 1], [NOW + 0.0119, FOREVER], NOW) == 1
    assert policy.company([1, 1], [NOW + 0.0121, FOREVER], NOW) == 2


def test_one_that_is_late_already_does_not_let_others_be_made_late() -> None:
    policy = BatchPolicy(8, 0.0, CURVE)
    # The second is in time with the first, and would not be with the third.
    assert policy.company([1, 1, 6], [NOW - 1, NOW + 0.013, FOREVER], NOW) == 2


def test_without_a_curve_only_the_size_counts() -> None:
    policy = BatchPolicy(3, 0.0)
    assert policy.seconds_for(64) == 0
    assert policy.company([1, 1, 1, 1], [NOW, FOREVER, NOW + 1, NOW], NOW) == 3


@given(policies(), st.integers(1, 12), st.floats(0, 0.2), deadlines, st.floats(0, 0.2))
def test_nobody_waits_beyond_the_window_nor_for_nothing(
    policy: BatchPolicy, rows: int, waited: float, deadline: float, gap: float
) -> None:
    oldest = NOW - waited
    until = policy.waits_until(rows, oldest, deadline, gap)
    if until is None:
        assert rows >= policy.size or policy.window == 0 or gap > policy.window
        return
    assert rows < policy.size, "never waits when full"
    assert gap <= policy.window, "never waits where nobody is to be expected"
    assert until <= oldest + policy.window
    if deadline < FOREVER and until > NOW:
        # Started then, with one more image, it is in time.
        assert until + policy.seconds_for(rows + 1) <= deadline


@pytest.mark.parametrize("rows", [8, 9])
def test_a_full_batch_starts_at_once(rows: int) -> None:
    assert BatchPolicy(8, 10.0, CURVE).waits_until(rows, NOW, FOREVER, 0.0) is None


def test_it_waits_for_company_that_comes_often_enough() -> None:
    policy = BatchPolicy(8, 0.01, CURVE)
    assert policy.waits_until(1, NOW, FOREVER, 0.009) == NOW + 0.01
    assert policy.waits_until(1, NOW, FOREVER, 0.011) is None
    assert policy.waits_until(1, NOW, FOREVER, FOREVER) is None, "nobody came before"
