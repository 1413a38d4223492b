"""Several batches at once, and requests computed where they came in."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from echo_engine import EchoEngine, answer_of, number_rows

from polarprune_deploy.serving.batch_curve import BatchCurve
from polarprune_deploy.serving.batch_policy import FOREVER, BatchPolicy
from polarprune_deploy.serving.batcher import Batcher, QueueLimits
from polarprune_deploy.serving.engines import Several
from polarprune_deploy.serving.request_errors import BROKEN, REJECTED, RequestError
from polarprune_deploy.serving.tickets import Batch, Ticket

SECONDS = 30
POLICY = BatchPolicy(1, 0.0, BatchCurve((1, 8), (1e-3, 4e-3)))


@dataclass
class Told:
    """What a batcher tells."""

    tickets: list[Ticket] = field(default_factory=list)
    fatal: list[BaseException] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    def note(self, batch: Batch) -> None:
        with self.came:
            self.tickets += batch.tickets
            self.came.notify_all()

    def wait_for(self, count: int) -> None:
        with self.came:
            assert self.came.wait_for(lambda: len(self.tickets) >= count, SECONDS)


def make(
    engine: EchoEngine, told: Told, several: Several | None = None, policy: BatchPolicy = POLICY,
    in_place: bool = True,
) -> Batcher:  # fmt: skip
    return Batcher(
        engine, policy, QueueLimits(), on_done=told.note, on_fatal=told.fatal.append,
        is_fatal=lambda error: "sticky" in str(error), several=several, in_place=in_place,
        name="side by side",
    )  # fmt: skip


def ticket_of(number: int, deadline: float = FOREVER) -> Ticket:
    return Ticket(number_rows(number, 1), 1, 16, deadline, token=number)


def is_answer(ticket: Ticket) -> bool:
    assert ticket.outputs is not None
    return bool((ticket.outputs["output"] == answer_of(ticket.token, 1)).all())


def wait_busy(engine: EchoEngine, count: int) -> None:
    end = time.monotonic() + SECONDS
    while engine.busy != count:
        assert time.monotonic() < end, f"{engine.busy} batches run, not {count}"
        time.sleep(0.001)


def test_what_comes_alone_gets_the_whole_engine_and_what_comes_then_runs_beside_it() -> None:
    whole, beside, told = EchoEngine(), EchoEngine(), Told()
    batcher = make(whole, told, Several(beside, 3), in_place=False)
    whole.gate.clear()
    beside.gate.clear()
    batcher.submit(ticket_of(0))
    wait_busy(whole, 1)
    for number in range(1, 6):
        batcher.submit(ticket_of(number))
    wait_busy(beside, 2)
    assert batcher.pending == 3, "three run at a time and no more"
    beside.gate.set()
    told.wait_for(5)
    assert [batch[0][0] for batch in whole.batches] == [0], "whoever is not alone does not get it"
    whole.gate.set()
    told.wait_for(6)
    batcher.submit(ticket_of(6))
    assert batcher.close(SECONDS)
    assert [batch[0][0] for batch in whole.batches] == [0, 6]
    assert beside.most_busy == 2
    assert all(map(is_answer, told.tickets))
    assert sorted(ticket.token for ticket in told.tickets) == list(range(7))
    assert "side by side" not in [thread.name for thread in threading.enumerate()]


def test_a_lone_short_request_is_computed_by_its_sender_and_told_to_nobody_else() -> None:
    engine, told = EchoEngine(), Told()
    batcher = make(engine, told)
    ticket = ticket_of(1)
    assert batcher.compute_in_place(ticket)
    assert is_answer(ticket)
    assert ticket.arrived <= ticket.started <= ticket.assembled <= ticket.computed
    assert batcher.close(SECONDS)
    assert told.tickets == []


def test_no_request_is_computed_in_place_that_is_not_short_alone_and_in_time() -> None:
    engine, told = EchoEngine(), Told()
    batcher = make(engine, told)
    long = Ticket(number_rows(1, 8), 8, 16)
    assert not batcher.compute_in_place(long), "it would hold up the others"
    assert not batcher.compute_in_place(ticket_of(2, time.monotonic() + 1e-3)), "hardly in time"
    engine.gate.clear()
    batcher.submit(ticket_of(3))
    wait_busy(engine, 1)
    assert not batcher.compute_in_place(ticket_of(4)), "the engine computes"
    batcher.submit(ticket_of(5))
    engine.gate.set()
    told.wait_for(2)
    batcher._last_arrival = time.monotonic()
    assert not batcher.compute_in_place(ticket_of(6)), "they come thick and fast"
    assert batcher.close(SECONDS)
    batcher._last_arrival = -FOREVER
    assert not batcher.compute_in_place(ticket_of(7)), "it is closed"
    elsewhere = make(engine, told, in_place=False)
    assert not elsewhere.compute_in_place(ticket_of(8)), "an engine that stays in its thread"
    assert elsewhere.close(SECONDS)
    unknown = make(engine, told, policy=BatchPolicy(1, 0.0))
    assert not unknown.compute_in_place(ticket_of(9)), "nobody knows how long it takes"
    assert unknown.close(SECONDS)
    assert [batch[0][0] for batch in engine.batches] == [3, 5]


@pytest.mark.parametrize("at_once", [1, 2])
def test_what_is_computed_in_place_counts_as_a_batch_that_runs(at_once: int) -> None:
    whole, beside, told = EchoEngine(), EchoEngine(), Told()
    batcher = make(whole, told, Several(beside, at_once) if at_once > 1 else None)
    whole.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher.compute_in_place, ticket_of(0))
        wait_busy(whole, 1)
        beside.gate.clear()
        for number in (1, 2):
            batcher.submit(ticket_of(number))
        wait_busy(beside, at_once - 1)
        assert batcher.pending == 3 - at_once
        closing = pool.submit(batcher.close, SECONDS)
        beside.gate.set()
        whole.gate.set()
        assert first.result(SECONDS)
        assert closing.result(SECONDS)
    assert whole.most_busy == 1
    assert sorted(ticket.token for ticket in told.tickets) == [1, 2]
    assert all(map(is_answer, told.tickets))


def test_closing_waits_for_what_is_computed_in_place_so_that_its_engine_can_be_freed() -> None:
    engine, told = EchoEngine(), Told()
    batcher = make(engine, told)
    engine.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        computing = pool.submit(batcher.compute_in_place, ticket_of(0))
        wait_busy(engine, 1)
        assert not batcher.close(0.02)
        engine.gate.set()
        assert batcher.close(SECONDS)
        assert engine.busy == 0
        assert computing.result(SECONDS)


def test_a_fatal_error_in_place_refuses_all_that_waits_and_is_told_once() -> None:
    engine, told = EchoEngine(), Told()
    batcher = make(engine, told)
    engine.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        ticket = ticket_of(0)
        computing = pool.submit(batcher.compute_in_place, ticket)
        wait_busy(engine, 1)
        for number in (1, 2):
            batcher.submit(ticket_of(number))
        engine.error = RuntimeError("sticky")
        engine.gate.set()
        assert computing.result(SECONDS)
    told.wait_for(2)
    assert batcher.close(SECONDS)
    assert ticket.error is not None
    assert ticket.error.kind == BROKEN
    assert {t.token: t.error.kind for t in told.tickets if t.error} == {1: REJECTED, 2: REJECTED}
    assert [str(error) for error in told.fatal] == ["sticky"]
    assert len(engine.batches) == 1, "nothing was computed after it"
    assert not batcher.compute_in_place(ticket_of(3))
    with pytest.raises(RequestError):
        batcher.submit(ticket_of(4))


def test_an_interrupt_in_place_is_not_swallowed_and_leaves_nobody_waiting() -> None:
    class Interrupted(EchoEngine):
        def run(self, *args: object) -> dict[str, object]:  # type: ignore[override]
            raise KeyboardInterrupt

    told = Told()
    batcher = make(Interrupted(), told)
    with pytest.raises(KeyboardInterrupt):
        batcher.compute_in_place(ticket_of(0))
    assert [type(error) for error in told.fatal] == [KeyboardInterrupt]
    assert batcher.close(SECONDS)
