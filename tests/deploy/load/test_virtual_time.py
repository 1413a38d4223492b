"""Both loops on a clock that nobody waits for, against queues whose times are known exactly."""

import asyncio
import heapq
import selectors
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polarprune.errors import Refused
from polarprune_deploy.load.connections import NO_TICKET
from polarprune_deploy.load.figures import LoadFigures
from polarprune_deploy.load.http_answers import HttpAnswer
from polarprune_deploy.load.loops import ClosedLoop, OpenLoop
from polarprune_deploy.load.pairs import ServerPair, compare
from polarprune_deploy.load.samples import Outcome, Samples
from polarprune_deploy.load.schedule import poisson_arrivals

ANSWER, FULL = HttpAnswer(200, b"right", None, False), HttpAnswer(503, b"", None, False)
RING = (b"0", b"1", b"2")
RIGHT: Any = SimpleNamespace(same=lambda request, answer: answer.body == b"right")


class _Leaping(selectors.SelectSelector):
    """Where a loop would wait, time passes at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing is left that could ever happen"
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.leaping = _Leaping()
        super().__init__(self.leaping)

    def time(self) -> float:
        return self.leaping.now


class QueueServer:
    """So many workers, each takes the same time for a request; first come, first served."""

    endpoint = SimpleNamespace(url="http://virtual")

    def __init__(self, workers: int, seconds: float, room: int = 10**9) -> None:
        self.free, self.seconds, self.room = [0.0] * workers, seconds, room
        self.inside, self.dialled = 0, 0
        self.seen: list[bytes] = []

    async def dial(self, listener: Any) -> "_Line":
        self.dialled += 1
        return _Line(self, listener)

    def take(self, now: float) -> tuple[float, HttpAnswer]:
        if self.inside >= self.room:
            return now, FULL
        self.inside += 1
        done = max(now, heapq.heappop(self.free)) + self.seconds
        heapq.heappush(self.free, done)
        return done, ANSWER


class _Line:
    usable = True

    def __init__(self, server: QueueServer, listener: Any) -> None:
        self._server, self._listener = server, listener
        self.ticket, self.idle_since = NO_TICKET, 0.0

    def send(self, message: bytes, ticket: int) -> None:
        assert self.ticket == NO_TICKET  # one request at a time
        loop = asyncio.get_running_loop()
        self.ticket = ticket
        self._server.seen.append(message)
        done, answer = self._server.take(loop.time())
        loop.call_at(done, self._answer, answer)

    def _answer(self, answer: HttpAnswer) -> None:
        self._server.inside -= answer is ANSWER
        self._listener.answered(self, answer, asyncio.get_running_loop().time())

    def close(self) -> None:
        self.usable = False


def run(main: Callable[[], Coroutine[Any, Any, Samples]]) -> Samples:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def closed(server: Any, clients: int, seconds: float) -> Samples:
    return run(lambda: ClosedLoop(server, RING, RIGHT, clients).run(seconds))


def opened(server: Any, connections: int, arrivals: np.ndarray) -> Samples:
    return run(lambda: OpenLoop(server, RING, RIGHT, connections).run(arrivals, 0.0))


def waits_of_one_worker(arrivals: np.ndarray, service: float) -> np.ndarray:
    """Lindley's recursion: a request waits as long as the one before, less the gap to it."""
    waits = [0.0]
    for gap in np.diff(arrivals):
        waits.append(max(0.0, waits[-1] + service - gap))
    return np.array(waits)


def figures(samples: Samples, seconds: float, batch: int = 1) -> LoadFigures:
    return LoadFigures(
        "http://virtual", "m", "closed", 1, None, batch, samples, 0.0, seconds, 0.0, 0.0, 0, 0, True
    )


def test_one_client_gets_the_constant_time_of_the_server_exactly() -> None:
    samples = closed(QueueServer(1, 0.01), 1, 10.0)
    assert samples.done - samples.due == pytest.approx(np.full(len(samples), 0.01))
    assert len(samples) in (1000, 1001)
    row = figures(samples, 10.0, batch=4).row()
    for percent in (50, 90, 99):
        assert row[f"p{percent}_ms"] == pytest.approx(10.0)
    assert row["requests_per_second"] == pytest.approx(100.0, rel=0.01)
    assert row["throughput"] == pytest.approx(400.0, rel=0.01)


@pytest.mark.parametrize(("clients", "workers"), [(4, 4), (8, 2), (12, 1), (3, 8)])
def test_a_closed_loop_keeps_each_client_waiting_for_those_before_it(
    clients: int, workers: int
) -> None:
    server = QueueServer(workers, 0.02)
    samples = closed(server, clients, 4.0)
    latency = samples.done - samples.due
    # So many are always inside (Little's law); the first round fills the queue.
    assert latency[clients:] == pytest.approx(0.02 * max(1.0, clients / workers), abs=0.0201)
    busy = min(clients, workers)
    assert len(samples) == pytest.approx(4.0 / 0.02 * busy + clients, abs=2 * clients)
    assert np.mean(latency[clients:]) == pytest.approx(0.02 * clients / busy, rel=0.05)
    assert server.dialled == clients
    assert server.seen[:6] == [b"0", b"1", b"2", b"0", b"1", b"2"]


@pytest.mark.parametrize("connections", [1, 512])
def test_an_open_loop_has_the_waits_of_the_queue_whatever_it_sends_over(connections: int) -> None:
    """With one connection the queue is in the client: latency is the same, as it must be."""
    arrivals = poisson_arrivals(80.0, 20.0, seed=2)
    samples = opened(QueueServer(1, 0.01), connections, arrivals)
    expected = waits_of_one_worker(arrivals, 0.01) + 0.01
    assert samples.done - samples.due == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(samples.due, arrivals)
    held = samples.sent - samples.due
    if connections == 1:
        assert held == pytest.approx(expected - 0.01, abs=1e-6)
    else:
        assert np.max(held) < 1e-6
    row = figures(samples, 20.0).row()
    assert row["p99_ms"] == pytest.approx(1e3 * np.percentile(expected, 99, method="inverted_cdf"))
    assert row["late"] == (np.sum(expected > 0.011) if connections == 1 else 0)


def test_a_stall_is_felt_by_all_that_was_due_in_it() -> None:
    """Coordinated omission: a client that waits for its answer asks once, and misses the rest."""
    arrivals = np.arange(0.0, 4.0, 0.01)
    server = QueueServer(1, 0.0001)
    server.free = [1.0]  # stands still for a second
    samples = opened(server, 1, arrivals)
    latency = samples.done - samples.due
    assert latency[:100] == pytest.approx(1.0 - arrivals[:100], abs=0.011)
    assert np.max(latency[103:]) < 0.001
    row = figures(samples, 4.0).row()
    assert row["p90_ms"] == pytest.approx(600.0, abs=12.0)
    assert row["late"] >= 99
    # What the same load looks like where the clock starts with the sending.
    assert np.percentile(samples.done - samples.sent, 99) < 0.001


def test_an_overloaded_server_that_refuses_does_so_at_once_and_is_told_apart() -> None:
    arrivals = poisson_arrivals(400.0, 10.0, seed=4)
    samples = opened(QueueServer(1, 0.01, room=8), 512, arrivals)
    row = figures(samples, 10.0).row()
    assert row["ok"] == pytest.approx(1000, abs=10)
    assert row["ok"] + row["rejected"] == row["n"] == len(arrivals)
    assert row["rejected_ms"]["max"] < 0.1
    # A place gets free, and is taken after a gap of 2.5 ms on average: its median is off 80 ms.
    assert row["p50_ms"] == pytest.approx(80.0 - 2.5 * np.log(2), abs=0.3)
    assert row["requests_per_second"] == pytest.approx(100.0, rel=0.01)
    assert row["late"] == 0


def test_connections_are_opened_as_needed_and_no_more_than_allowed() -> None:
    arrivals = np.arange(0.0, 2.0, 0.01)
    fast, slow = QueueServer(64, 0.005), QueueServer(64, 0.2)
    opened(fast, 512, arrivals)
    assert fast.dialled == 1
    samples = opened(slow, 5, arrivals)
    assert slow.dialled == 5
    # Five at a time, a fifth of a second each: 25 a second.
    assert np.max(samples.done) == pytest.approx(200 / 25, rel=0.05)


def test_a_connection_that_rested_is_not_used_again() -> None:
    server = QueueServer(1, 0.01)
    opened(server, 8, np.array([0.0, 1.0, 4.0, 5.0, 8.0]))
    assert server.dialled == 3


def compared(against: Any, candidate: Any, clients: int, rounds: int = 40) -> ServerPair:
    targets = [
        SimpleNamespace(
            dialer=server, ring=RING, first=RIGHT, url="http://virtual",
            model=SimpleNamespace(name="m"), kind=SimpleNamespace(batch=2),
        )
        for server in (candidate, against)
    ]  # fmt: skip
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(
            compare(*targets, clients=clients, rounds=rounds, family=1, seed=3)  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("clients", [1, 6])
def test_a_comparison_has_the_ratio_of_the_servers_times(clients: int) -> None:
    pair = compared(QueueServer(1, 0.02), QueueServer(1, 0.01), clients)
    row = pair.row()
    assert row["speedup"] == pytest.approx(2.0, rel=1e-6)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((2.0, 2.0), rel=1e-6)
    assert row["control"] == pytest.approx({"speedup": 1.0, "ci_low": 1.0, "ci_high": 1.0})
    assert row["verdict"] == "faster"
    assert (row["against_ms"], row["ms"]) == pytest.approx((20.0, 10.0))
    assert row["throughput"] == pytest.approx(200.0)
    rounds = [pair.blocks[start : start + 3] for start in range(0, 120, 3)]
    assert len(pair.blocks) == 120
    # In random order, each role once a round.
    orders = {tuple(block.role for block in each) for each in rounds}
    assert all(len(set(order)) == 3 for order in orders)
    assert len(orders) == 6


def test_drift_of_the_machine_does_not_move_the_ratio() -> None:
    """Both get twice as slow within the comparison: one after the other would say otherwise."""

    class Drifting(QueueServer):
        def take(self, now: float) -> tuple[float, HttpAnswer]:
            self.seconds = self.base * (1.0 + now / 60.0)
            return super().take(now)

    servers = Drifting(1, 0.02), Drifting(1, 0.0202)
    for server in servers:
        server.base = server.seconds  # type: ignore[attr-defined]
    pair = compared(*servers, clients=1)
    assert pair.effect.ci_low < 1 / 1.01 < pair.effect.ci_high
    times = [block.answer_ms for block in pair.blocks]
    assert max(times) > 1.4 * min(times)


def test_refusals_leave_a_comparison_inconclusive() -> None:
    pair = compared(QueueServer(1, 0.02), QueueServer(1, 0.01, room=2), clients=2)
    assert pair.verdict == "faster"

    class Picky(QueueServer):
        def take(self, now: float) -> tuple[float, HttpAnswer]:
            done, answer = super().take(now)
            return (done, FULL) if len(self.seen) % 50 == 0 else (done, answer)

    pair = compared(QueueServer(1, 0.02), Picky(1, 0.01), clients=1)
    assert pair.verdict == "inconclusive"
    assert "requests were refused, failed or answered wrongly" in pair.reason


def test_servers_too_slow_for_the_rounds_are_refused() -> None:
    with pytest.raises(Refused, match=r"40 rounds would take 1200 s, over the 600 s allowed"):
        compared(QueueServer(1, 2.0), QueueServer(1, 0.01), clients=1)


def test_the_percentiles_are_those_of_right_answers_that_were_due_in_time() -> None:
    samples = Samples()
    generator = np.random.default_rng(0)
    times, kinds = generator.exponential(0.02, 3000), generator.integers(1, 5, 3000)
    for number, (seconds, kind) in enumerate(zip(times, kinds, strict=True)):
        due = number / 100 - 5.0
        samples.finish(samples.add(due, due), Outcome(kind), due + seconds)
    row = figures(samples, 20.0).row()
    counted = slice(500, 2500)
    right = times[counted][kinds[counted] == Outcome.OK] * 1e3
    for percent in (50, 90):
        expected = np.percentile(right, percent, method="inverted_cdf")
        assert row[f"p{percent}_ms"] == pytest.approx(expected)
        interval = row["percentiles"][f"p{percent}_ms"]
        assert interval["low"] < expected < interval["high"]
    assert row["p99_ms"] is None  # fewer than 662
    assert (row["n"], row["ok"]) == (2000, len(right))
    assert row["rejected"] == np.sum(kinds[counted] == Outcome.REJECTED)
    assert row["failed"] == np.sum(kinds[counted] == Outcome.FAILED)
    assert row["wrong"] == np.sum(kinds == Outcome.WRONG)
    blocks = row["requests_per_second_blocks"]
    assert blocks["low"] < blocks["median"] < blocks["high"]
