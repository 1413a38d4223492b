"""Requests on their way to one server, and what is done with each answer.

What both ways to make load share (`loops` has them). Everything happens in callbacks of one event
loop, so there is nothing to lock, and the way from an answer to the next request is short.
"""

import asyncio
import selectors
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from polarprune.collecting import paused_collection
from polarprune.errors import ServerError
from polarprune_deploy.load.answers import FirstAnswers
from polarprune_deploy.load.connections import NO_TICKET, Connection, Dialer
from polarprune_deploy.load.endpoint import PATIENCE_SECONDS, reason_of
from polarprune_deploy.load.http_answers import HttpAnswer
from polarprune_deploy.load.model_metadata import words_of
from polarprune_deploy.load.samples import Outcome, Samples

FAILURES_IN_A_ROW = 50
"""From here on the server is gone, and waiting for it would measure nothing."""
IDLE_SECONDS = 2.0
"""A connection that waited longer may be closed by the server just now, so it isn't used again."""
_LOOK_SECONDS = 0.25

T = TypeVar("T")


def run_loop(main: Coroutine[Any, Any, T], *, exact_timers: bool) -> T:
    """Run on an event loop of its own, without garbage collections in between.

    Args:
        main: what is run.
        exact_timers: wait with `select`, at some cost for each connection: the timers of `epoll`
            are up to a millisecond late, by which a schedule would be missed.
    """
    selector = selectors.SelectSelector() if exact_timers else selectors.DefaultSelector()
    with (
        paused_collection(),
        asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner,
    ):
        return runner.run(main)


class Traffic(ABC):
    """Sends a ring of requests round and round, and notes what comes of each."""

    def __init__(self, dialer: Dialer, ring: Sequence[bytes], first: FirstAnswers) -> None:
        self._dialer, self._ring, self._first = dialer, ring, first
        self._idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._open = 0  # connections, those being dialled included
        self._closed = False
        self._words: dict[int, str] = {}
        self.samples = Samples()
        self.cpu_seconds = 0.0

    @abstractmethod
    def _free(self, connection: Connection) -> None:
        """A connection that can take a request."""

    @abstractmethod
    def _gone(self) -> None:
        """There is one connection less."""

    @abstractmethod
    def _refused(self, why: str) -> None:
        """A connection could not be made."""

    @abstractmethod
    def _settled(self) -> bool:
        """Whether all is sent, and nothing is owed."""

    async def _until_settled(self, end: float) -> None:
        """Wait until everything is answered, or nothing comes any more.

        Args:
            end: of the load; what is still owed then may take its time, but not for ever.

        Raises:
            ServerError: the server is gone before the end.
        """
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = loop.create_future()
        self._heard, self._failures = loop.time(), 0
        # A mistake in a callback would only be logged, and the load would wait for ever.
        loop.set_exception_handler(lambda _, context: self._stop(context.get("exception")))
        before = time.process_time()
        while not self._over.done():
            await asyncio.wait([self._over], timeout=_LOOK_SECONDS)
            self._look_for_silence(loop.time(), end)
        self.cpu_seconds = time.process_time() - before
        self._over.result()

    def _look_for_silence(self, now: float, end: float) -> None:
        if now - self._heard <= PATIENCE_SECONDS or self._over.done():
            return
        why = f"no answer within {PATIENCE_SECONDS:.0f} s"
        if now <= end or self._failures:
            self._stop(self._lost_server(why))
            return
        self.samples.fail_open(now, why)
        self._hang_up(lambda connection: connection.ticket != NO_TICKET)
        self._over.set_result(None)

    def answered(self, connection: Connection, answer: HttpAnswer, when: float) -> None:
        """Called by the connection."""
        ticket, connection.ticket = connection.ticket, NO_TICKET
        self._heard, self._failures = when, 0
        status, reason = answer.status, ""
        if status == 200:
            right = self._first.same(ticket % len(self._ring), answer)
            outcome = Outcome.OK if right else Outcome.WRONG
        elif status == 503:
            outcome = Outcome.REJECTED
        else:
            outcome, reason = Outcome.FAILED, self._reason(answer)
        self.samples.finish(ticket, outcome, when, reason)
        if connection.usable:
            self._free(connection)
        else:
            self._forget(connection)
            self._gone()
        self._look_whether_over()

    def lost(self, connection: Connection, why: str) -> None:
        """Called by the connection."""
        ticket, connection.ticket = connection.ticket, NO_TICKET
        self._forget(connection)
        if ticket != NO_TICKET:  # else it was idle, and nobody waits for it
            self.samples.finish(ticket, Outcome.FAILED, asyncio.get_running_loop().time(), why)
            self._gone()
            self._count_failure(why)
        self._look_whether_over()

    def _reason(self, answer: HttpAnswer) -> str:
        """Of a failure, in the words that the first one of its status came with."""
        if answer.status not in self._words:
            self._words[answer.status] = words_of(answer.body)
        return f"status {answer.status}{self._words[answer.status]}"

    def _fresh_idle(self, now: float) -> Connection | None:
        """The connection that was used last and is still good, taken out of those that wait."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.usable:
                continue
            if now - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.close()
            self._forget(connection)
        return None

    def _dial(self) -> None:
        if self._closed:
            return
        self._open += 1
        task = asyncio.get_running_loop().create_task(self._dialed())
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dialed(self) -> None:
        try:
            connection = await self._dialer.dial(self)
        except OSError as error:
            self._open -= 1
            self._refused(reason_of(error))
            self._count_failure(reason_of(error))
        else:
            self._connections.add(connection)
            self._free(connection)
        self._look_whether_over()

    def _forget(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._open -= 1

    def _hang_up(self, which: Callable[[Connection], bool]) -> None:
        for connection in [each for each in self._connections if which(each)]:
            connection.close()
            self._forget(connection)

    def _count_failure(self, why: str) -> None:
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            self._stop(self._lost_server(why))

    def _lost_server(self, why: str) -> ServerError:
        answers = int((self.samples.outcomes == Outcome.OK).sum())
        return ServerError(
            f"{self._dialer.endpoint.url} stopped answering, after {answers:,} answers: {why}"
        )

    def _look_whether_over(self) -> None:
        if not self._over.done() and self._settled():
            self._over.set_result(None)

    def _stop(self, error: BaseException | None) -> None:
        if not self._over.done():
            self._over.set_exception(error or RuntimeError("the event loop met an error"))

    async def close(self) -> None:
        """Hang up everywhere, and dial no more."""
        self._closed = True
        for task in self._dials:
            task.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        self._hang_up(lambda connection: True)
        await asyncio.sleep(0)  # the sockets are closed in the next turn of the loop
