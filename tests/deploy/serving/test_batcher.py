"""The batcher under many threads: each request gets its own rows, exactly once, or a refusal."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from echo_engine import EchoEngine, answer_of, number_rows

from polarprune_deploy.serving.batch_curve import BatchCurve
from polarprune_deploy.serving.batch_policy import FOREVER, BatchPolicy
from polarprune_deploy.serving.batcher import Batch, Batcher, Named, QueueLimits, Ticket
from polarprune_deploy.serving.request_errors import BROKEN, LATE, REJECTED, RequestError

SECONDS = 30
SIZE = 8
POLICY = BatchPolicy(SIZE, 0.0002, BatchCurve((1, 8), (1e-5, 4e-5)))
NBYTES = 16


class Desk:
    """Sends numbered requests to a batcher, and keeps what it tells."""

    def __init__(self, engine: EchoEngine, limits: QueueLimits, **more: object) -> None:
        self.engine, self.tickets = engine, dict[int, Ticket]()
        self.told: list[Ticket] = []
        """Each ticket that was handed back, in order."""
        self.fatal: list[BaseException] = []
        self.batcher = Batcher(
            engine, POLICY, limits, on_done=self._note, on_fatal=self.fatal.append,
            **more,  # type: ignore[arg-type]
        )  # fmt: skip

    def send(self, number: int, rows: int = 1, deadline: float = FOREVER, side: int = 1) -> Ticket:
        ticket = Ticket(number_rows(number, rows, side), rows, NBYTES * rows, deadline, number)
        self.batcher.submit(ticket)
        self.tickets[number] = ticket
        return ticket

    def _note(self, batch: Batch) -> None:
        self.told += batch.tickets

    @contextmanager
    def held(self) -> Iterator[None]:
        """The engine stays inside of a batch of one, the request 0."""
        self.engine.gate.clear()
        self.send(0)
        assert self.engine.running.wait(SECONDS)
        yield
        self.engine.gate.set()


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


def is_answer(ticket: Ticket) -> bool:
    assert ticket.outputs is not None
    side = ticket.inputs["input"].shape[2]
    expected = answer_of(ticket.token, ticket.rows, side)
    return np.array_equal(ticket.outputs["output"], expected)


class Sender:
    """One of many threads: sends, takes some back, and is content with a refusal."""

    def __init__(self, desk: Desk, seed: int, requests: int) -> None:
        self._desk, self._seed, self._requests = desk, seed, requests
        self.refused: list[RequestError] = []
        self.canceled: dict[int, float] = {}
        """When each that was taken back was so, seconds."""
        self.most_pending = 0

    def __call__(self) -> None:
        generator = random.Random(self._seed)
        batcher = self._desk.batcher
        for index in range(self._requests):
            deadline = FOREVER
            if generator.random() < 0.2:
                deadline = time.monotonic() + generator.random() * 0.01
            number = self._seed * 1_000_000 + index
            try:
                ticket = self._desk.send(
                    number, generator.randint(1, 5), deadline, generator.choice([1, 1, 1, 2])
                )
            except RequestError as error:
                self.refused.append(error)
                time.sleep(0.001)
                continue
            if generator.random() < 0.1:
                batcher.cancel(ticket)
                self.canceled[number] = time.monotonic()
            self.most_pending = max(self.most_pending, batcher.pending)


@pytest.mark.parametrize("failures", [0.0, 0.1], ids=["sound", "failing now and then"])
def test_thousands_of_requests_from_many_threads_are_answered_once_with_their_own_rows(
    failures: float,
) -> None:
    desk = Desk(EchoEngine(1, failures, longest=0.001), QueueLimits(24, nbytes=60 * NBYTES))
    senders = [Sender(desk, seed, 500) for seed in range(1, 9)]
    with ThreadPoolExecutor(len(senders)) as pool:
        for done in [pool.submit(sender) for sender in senders]:
            done.result(SECONDS)
    assert desk.batcher.close(SECONDS)
    refused = [error for sender in senders for error in sender.refused]
    canceled = {key: when for sender in senders for key, when in sender.canceled.items()}
    assert len(desk.tickets) + len(refused) == 8 * 500
    assert {error.kind for error in refused} == {REJECTED}
    assert all(error.retry_after is not None and error.retry_after >= 1 for error in refused)
    assert max(sender.most_pending for sender in senders) <= 24

    # Each was handed back exactly once; nothing that nobody sent.
    times_told = Counter(ticket.token for ticket in desk.told)
    assert times_told == Counter(desk.tickets.keys())
    computed = Counter(row for batch in desk.engine.batches for row in batch)
    assert max(computed.values()) == 1, "no row is computed twice"
    numbers = {number for number, _ in computed}
    kinds = Counter[str]()
    for ticket in desk.told:
        if ticket.outputs is not None:
            assert ticket.error is None
            assert is_answer(ticket)
            kinds["answered"] += 1
        elif ticket.error is None:
            assert ticket.canceled
            assert ticket.token not in numbers, "what was taken back in time is not computed"
            kinds["canceled"] += 1
        else:
            kinds[ticket.error.kind] += 1
            assert (ticket.token in numbers) == (ticket.error.kind == BROKEN)
        if ticket.token in numbers and ticket.token in canceled:
            assert ticket.started <= canceled[ticket.token], "only what was begun before"
        if ticket.token in numbers and ticket.deadline < FOREVER:
            assert ticket.started + POLICY.seconds_for(ticket.rows) <= ticket.deadline
    assert kinds["answered"] > 200
    assert kinds["canceled"] > 10
    assert kinds[LATE] > 10
    assert (kinds[BROKEN] > 10) == (failures > 0)
    for batch in desk.engine.batches:
        assert len(batch) <= SIZE
        senders_of = [number // 1_000_000 for number, _ in batch]
        for seed in set(senders_of):
            own = [row for row, of in zip(batch, senders_of, strict=True) if of == seed]
            assert own == sorted(own), "in the order in which they came"
    assert desk.batcher.pending == 0
    assert desk.batcher._queued_rows == desk.batcher._queued_bytes == 0
    assert desk.fatal == []


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    desk = Desk(EchoEngine(), QueueLimits(3))
    with desk.held():
        for number in (1, 2, 3):
            desk.send(number)
        start = time.monotonic()
        with pytest.raises(RequestError, match="the queue is full: 3 requests wait") as refused:
            desk.send(4)
        assert time.monotonic() - start < 0.5
        assert (refused.value.kind, refused.value.retry_after) == (REJECTED, 1)
        assert desk.batcher.pending == 3
    assert desk.batcher.close(SECONDS)
    assert [ticket.token for ticket in desk.told] == [0, 1, 2, 3]


def test_what_was_taken_back_or_is_late_is_never_computed_and_makes_room() -> None:
    desk = Desk(EchoEngine(), QueueLimits(4))
    with desk.held():
        back, late = desk.send(1), desk.send(2, deadline=time.monotonic() + 0.001)
        kept = desk.send(3)
        desk.batcher.cancel(back)
        wait_until(lambda: time.monotonic() > late.deadline)
    wait_until(lambda: len(desk.told) == 4)
    desk.send(4)
    assert desk.batcher.close(SECONDS)
    assert [batch[0][0] for batch in desk.engine.batches] == [0, 3, 4]
    assert (back.outputs, back.error) == (None, None)
    assert late.error is not None
    assert late.error.kind == LATE
    assert is_answer(kept)


def test_taking_back_what_is_being_computed_changes_nothing() -> None:
    desk = Desk(EchoEngine(), QueueLimits())
    with desk.held():
        desk.batcher.cancel(desk.tickets[0])
    assert desk.batcher.close(SECONDS)
    assert is_answer(desk.tickets[0])
    assert not desk.tickets[0].canceled


def test_one_that_is_late_is_told_though_nobody_comes_after_it() -> None:
    desk = Desk(EchoEngine(), QueueLimits())
    late = desk.send(1, deadline=time.monotonic() - 1)
    wait_until(lambda: desk.told == [late])
    assert desk.batcher.close(SECONDS)
    assert desk.engine.batches == []


def test_one_that_is_late_is_told_before_those_that_still_wait_for_company() -> None:
    patient = BatchPolicy(SIZE, 10.0, POLICY.curve)
    told: list[Ticket] = []
    batcher = Batcher(
        EchoEngine(), patient, QueueLimits(),
        on_done=lambda batch: told.extend(batch.tickets), on_fatal=told.append,  # type: ignore[arg-type]
    )  # fmt: skip
    now = time.monotonic()
    batcher._gap = 0.0  # as if they had come thick and fast
    batcher._last_arrival = now
    first = Ticket(number_rows(1, 1), 1, NBYTES, token=1)
    batcher.submit(first)
    late = Ticket(number_rows(2, 1), 1, NBYTES, now - 1, token=2)
    batcher.submit(late)
    wait_until(lambda: told == [late])
    assert batcher.pending == 1
    assert batcher.close(SECONDS), "closing waits for no company"
    assert told == [late, first]


def test_a_failing_batch_fails_its_own_requests_each_with_its_own_error() -> None:
    desk = Desk(EchoEngine(), QueueLimits())
    with desk.held():
        one, two = desk.send(1), desk.send(2)
        desk.engine.error = RuntimeError("no")
    wait_until(lambda: len(desk.told) == 3)
    desk.engine.error = None
    three = desk.send(3)
    assert desk.batcher.close(SECONDS)
    assert one.error is not None
    assert two.error is not None
    assert one.error is not two.error, "raised in two places, one error would be changed twice"
    assert str(one.error) == "the model failed on this request"
    assert one.error.__cause__ is two.error.__cause__
    assert is_answer(three)
    assert desk.fatal == []


def test_an_output_that_is_not_one_an_image_fails_the_batch() -> None:
    class Short(EchoEngine):
        def run(self, batch: Named, rows: int) -> Named:
            return {"output": batch["input"][:1]}

    desk = Desk(Short(), QueueLimits())
    ticket = desk.send(1, rows=2)
    assert desk.batcher.close(SECONDS)
    assert ticket.error is not None
    assert str(ticket.error.__cause__) == "output output has 1 rows for 2 images"


def test_a_fatal_error_refuses_all_that_waits_and_is_told_once() -> None:
    desk = Desk(EchoEngine(), QueueLimits(), is_fatal=lambda error: "sticky" in str(error))
    with desk.held():
        for number in (1, 2, 3):
            desk.send(number)
        desk.engine.error = RuntimeError("sticky")
    wait_until(lambda: bool(desk.fatal))
    with pytest.raises(RequestError) as refused:
        desk.send(4)
    assert refused.value.retry_after is None
    assert desk.batcher.close(SECONDS)
    assert [str(error) for error in desk.fatal] == ["sticky"]
    kinds = {t.token: t.error.kind for t in desk.told if t.error is not None}
    assert kinds == {0: BROKEN, 1: REJECTED, 2: REJECTED, 3: REJECTED}
    assert [len(batch) for batch in desk.engine.batches] == [1], "nothing was computed after it"


def test_a_receiver_that_raises_is_fatal_rather_than_silent() -> None:
    fatal: list[BaseException] = []
    refused: list[Ticket] = []
    engine = EchoEngine()

    def receive(batch: Batch) -> None:
        if batch.tickets[0].error is None:
            raise KeyError("receiver")
        refused.extend(batch.tickets)

    batcher = Batcher(
        engine, BatchPolicy(1, 0.0), QueueLimits(), on_done=receive, on_fatal=fatal.append
    )
    engine.gate.clear()
    for number in (1, 2):
        batcher.submit(Ticket(number_rows(number, 1), 1, NBYTES, token=number))
    engine.gate.set()
    assert batcher.close(SECONDS)
    assert [type(error) for error in fatal] == [KeyError]
    assert [ticket.token for ticket in refused] == [2]


def test_closing_answers_all_that_was_taken_and_takes_nothing_more() -> None:
    desk = Desk(EchoEngine(), QueueLimits())
    with desk.held(), ThreadPoolExecutor(1) as pool:
        for number in range(1, 21):
            desk.send(number)
        closing = pool.submit(desk.batcher.close, SECONDS)
        wait_until(lambda: desk.batcher._closing)
        with pytest.raises(RequestError, match="being replaced or the server stops"):
            desk.send(99)
        desk.engine.gate.set()
        assert closing.result(SECONDS)
    assert [ticket.token for ticket in desk.told] == list(range(21))
    assert all(map(is_answer, desk.told))
    assert desk.batcher.close(0), "a second time does nothing"


def test_closing_in_too_little_time_refuses_what_waits_and_leaves_what_runs() -> None:
    desk = Desk(EchoEngine(), QueueLimits())
    with desk.held():
        waiting = desk.send(1)
        assert not desk.batcher.close(0.02)
        assert waiting.error is not None
        assert waiting.error.kind == REJECTED
    assert desk.batcher.close(SECONDS)
    assert is_answer(desk.tickets[0])
    assert [ticket.token for ticket in desk.told] == [1, 0]
    assert "batcher" not in [thread.name for thread in threading.enumerate()]
