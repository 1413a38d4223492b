"""Which batches the batcher makes, and when, on a virtual clock.

It is driven in the test's own thread, where sleeping and computing only move the clock, and held
against a simulation that does one thing after the other and shares no code with it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polarprune_deploy.serving.batch_curve import BatchCurve
from polarprune_deploy.serving.batch_policy import FOREVER, BatchPolicy
from polarprune_deploy.serving.batcher import Batch, Batcher, Named, QueueLimits, Ticket
from polarprune_deploy.serving.request_errors import RequestError

TICK = 1 / 1024  # sums of it are exact
COSTS = {1: 8 * TICK, 2: 10 * TICK, 4: 14 * TICK, 8: 22 * TICK}
CURVE = BatchCurve(tuple(COSTS), tuple(COSTS.values()))


def cost(rows: int) -> float:
    """The curve, written down: 8 ticks for the first image and 2 for each further one."""
    return (6 + 2 * rows) * TICK


@dataclass(frozen=True)
class Arrival:
    """A request that will come."""

    time: float
    rows: int
    patience: float  # seconds to its deadline
    side: int

    @property
    def deadline(self) -> float:
        return self.time + self.patience


@dataclass
class Outcome:
    """What became of all of them, by their position."""

    batches: list[tuple[float, list[int]]] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)


class VirtualBatcher(Batcher):
    """The batcher without its thread, in a world where time passes when nothing happens."""

    def __init__(self, arrivals: Sequence[Arrival], policy: BatchPolicy, limits: QueueLimits):
        self.now, self.outcome = 0.0, Outcome()
        self._coming = list(enumerate(arrivals))
        super().__init__(
            self, policy, limits, on_done=self._note, on_fatal=_raise, clock=lambda: self.now
        )

    def _serve(self) -> None:
        """The thread does nothing: the test calls `drive`."""

    def drive(self) -> Outcome:
        self._thread.join()
        assert self._serve_until_closed() is None
        assert self._queued_rows == self._queued_bytes == self._with_deadline == 0
        return self.outcome

    def _sleep(self, seconds: float | None) -> None:
        if seconds is None and not self._coming:
            self._closing = True
            return
        wakes = self.now + (FOREVER if seconds is None else seconds)
        if self._coming and self._coming[0][1].time <= wakes:
            wakes = self._coming[0][1].time
        self._pass_to(wakes)

    def _pass_to(self, then: float) -> None:
        while self._coming and self._coming[0][1].time <= then:
            position, arrival = self._coming.pop(0)
            self.now = max(self.now, arrival.time)
            inputs = {"input": np.zeros((arrival.rows, arrival.side))}
            try:
                self.submit(Ticket(inputs, arrival.rows, arrival.rows, arrival.deadline, position))
            except RequestError:
                self.outcome.refused.append(position)
        self.now = max(self.now, then)

    def assemble(self, parts: Sequence[Named], rows: int) -> Named:
        return {"input": np.concatenate([part["input"] for part in parts])}

    def run(self, batch: Named, rows: int) -> Named:
        self._pass_to(self.now + cost(rows))
        return {"output": batch["input"]}

    def _note(self, batch: Batch) -> None:
        positions = [ticket.token for ticket in batch.tickets]
        if batch.tickets[0].error is None:
            self.outcome.batches.append((batch.tickets[0].started, positions))
        else:
            self.outcome.late += positions


def _raise(error: BaseException) -> None:
    raise error


def simulate(arrivals: Sequence[Arrival], size: int, window: float, most: int) -> Outcome:
    """The rules of `batch_policy`, one step after the other."""
    found, queue = Outcome(), list[int]()
    now, coming, gap, last = 0.0, 0, FOREVER, -FOREVER

    def rows(positions: Sequence[int]) -> int:
        return sum(arrivals[i].rows for i in positions)

    def let_come(then: float) -> None:
        nonlocal now, coming, gap, last
        while coming < len(arrivals) and arrivals[coming].time <= then:
            came = max(now, arrivals[coming].time)
            if len(queue) == most:
                found.refused.append(coming)
            else:
                between, last = came - last, came
                gap = between if gap == FOREVER else gap + 0.1 * (between - gap)
                queue.append(coming)
            coming += 1
        now = max(now, then)

    while queue or coming < len(arrivals):
        if not queue:
            let_come(max(now, arrivals[coming].time))
        late = [i for i in queue if now + cost(arrivals[i].rows) > arrivals[i].deadline]
        found.late += late
        queue[:] = [i for i in queue if i not in late]
        if not queue:
            continue
        same = arrivals[queue[0]].side == arrivals[queue[-1]].side
        if rows(queue) < size and window > 0 and gap <= window and same:
            start = arrivals[queue[0]].time + window
            for i in queue:
                start = min(start, arrivals[i].deadline - 2 * cost(rows(queue) + 1))
            if start > now:
                following = arrivals[coming].time if coming < len(arrivals) else FOREVER
                let_come(min(start, following))
                continue
        taken = [queue.pop(0)]
        while queue and arrivals[queue[0]].side == arrivals[taken[0]].side:
            larger = [*taken, queue[0]]
            if rows(larger) > size:
                break
            if any(now + cost(rows(larger)) > arrivals[i].deadline for i in larger):
                break
            taken.append(queue.pop(0))
        found.batches.append((now, taken))
        let_come(now + cost(rows(taken)))
    return found


ticks = st.integers(0, 40).map(lambda n: n * TICK)
patience = st.one_of(st.just(FOREVER), st.integers(1, 120).map(lambda n: n * TICK))


@st.composite
def traffic(draw: st.DrawFn) -> list[Arrival]:
    sides = st.sampled_from([1] * 6 + [2])
    steps = draw(st.lists(st.tuples(ticks, st.integers(1, 5), patience, sides), max_size=30))
    now, coming = 0.0, []
    for gap, rows, wait, side in steps:
        now += gap
        coming.append(Arrival(now, rows, wait, side))
    return coming


windows = st.sampled_from([0.0, 4 * TICK, 16 * TICK, 64 * TICK])


@given(traffic(), st.integers(1, 8), windows, st.integers(1, 12))
def test_batches_are_those_of_a_plain_simulation(
    arrivals: list[Arrival], size: int, window: float, most: int
) -> None:
    batcher = VirtualBatcher(arrivals, BatchPolicy(size, window, CURVE), QueueLimits(most))
    found, expected = batcher.drive(), simulate(arrivals, size, window, most)
    assert found.batches == expected.batches
    assert (found.late, found.refused) == (expected.late, expected.refused)


@given(traffic(), st.integers(1, 8), windows, st.integers(1, 12))
def test_order_size_shape_and_deadline_hold_for_every_batch(
    arrivals: list[Arrival], size: int, window: float, most: int
) -> None:
    policy = BatchPolicy(size, window, CURVE)
    found = VirtualBatcher(arrivals, policy, QueueLimits(most)).drive()
    taken = [i for _, batch in found.batches for i in batch]
    assert taken == sorted(taken), "in the order of arrival"
    everything = sorted([*taken, *found.late, *found.refused])
    assert everything == list(range(len(arrivals))), "each exactly once"
    idle = 0.0
    for start, batch in found.batches:
        rows = sum(arrivals[i].rows for i in batch)
        assert rows <= size or len(batch) == 1
        assert len({arrivals[i].side for i in batch}) == 1
        end = start + cost(rows)
        assert all(end <= arrivals[i].deadline for i in batch), "nobody is computed too late"
        # An idle engine has let nobody wait beyond the window.
        assert start <= max(idle, arrivals[batch[0]].time + window)
        idle = end


def test_bytes_that_wait_are_bounded_but_for_a_single_request() -> None:
    arrivals = [Arrival(0.0, rows, FOREVER, 1) for rows in (1, 3, 3, 1, 9)]
    batcher = VirtualBatcher(arrivals, BatchPolicy(8, 0.0, CURVE), QueueLimits(99, nbytes=4))
    found = batcher.drive()
    assert found.refused == [2, 3, 4], "the first and second fill the four bytes"
    alone = [dataclasses.replace(arrivals[4], time=5.0)]
    batcher = VirtualBatcher(alone, BatchPolicy(8, 0.0, CURVE), QueueLimits(99, nbytes=4))
    assert batcher.drive().refused == []
