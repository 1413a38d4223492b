"""The dynamic batcher: requests in from any thread, batches through an engine, results out.

Its threads compute, one batch at a time or several where the engine is one that can; of those that
are idle one watches the queue. A short run of a request that comes alone is computed where it came
in: to hand it over and back takes about as long. The queue is bounded in requests and in bytes, and
says no at once. A request that was canceled, or that cannot be in time any more, is never computed.
Results go out by position: those of a request are the rows that its inputs had in the batch.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from polarprune_deploy.serving.batch_policy import FOREVER, BatchPolicy
from polarprune_deploy.serving.engines import Engine, Several, compute
from polarprune_deploy.serving.request_errors import LATE, REJECTED, RequestError
from polarprune_deploy.serving.tickets import Batch, Ticket

RECENT = 0.1
"""Weight of the last gap in the mean of the gaps between arrivals."""
SHORT_SECONDS = 0.002
"""Of a run that may hold up whoever brings the request."""
APART = 1.3
"""Gap since the last arrival, in times of a run: below it requests come as fast as they can be
computed, and are better computed together."""


@dataclass(frozen=True)
class QueueLimits:
    """What may wait at a time; what is being computed does not count.

    One request always may, whatever its bytes.
    """

    requests: int = 256
    nbytes: int = 256 << 20


class Batcher:
    """A bounded queue before an engine."""

    def __init__(
        self,
        engine: Engine,
        policy: BatchPolicy,
        limits: QueueLimits,
        *,
        on_done: Callable[[Batch], None],
        on_fatal: Callable[[BaseException], None],
        is_fatal: Callable[[BaseException], bool] = lambda error: False,
        several: Several | None = None,
        in_place: bool = False,
        name: str = "batcher",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the threads.

        Args:
            engine: computes the batches; with `several`, those that are alone.
            policy: when to start, with how many.
            limits: what may wait.
            on_done: told, in the thread that computed it, of each batch whose tickets have outputs
                or errors. If it raises, that is fatal.
            on_fatal: told of an error after which the engine's results cannot be trusted; all that
                waits has been refused then. Nothing more is taken, and it is told once.
            is_fatal: which errors of the engine those are.
            several: computes batches while others are being computed; None: one at a time.
            in_place: whether the engine takes runs in the threads of those who bring requests.
            name: of the threads.
            clock: seconds.
        """
        self.policy, self.limits = policy, limits
        self._engine, self._on_done, self._on_fatal = engine, on_done, on_fatal
        self._is_fatal, self._clock = is_fatal, clock
        self._several, self._in_place = several, in_place
        self._most = 1 if several is None else several.count
        self._queue: deque[Ticket] = deque()
        self._queued_rows = self._queued_bytes = 0
        self._with_deadline = self._canceled = 0
        self._gap = FOREVER
        self._last_arrival = -FOREVER
        self._computing = 0
        self._led = self._waiting = False
        self._closing = False
        self._fatal: BaseException | None = None
        lock = threading.RLock()
        self._wake = threading.Condition(lock)
        """Of the thread that watches the queue."""
        self._bench = threading.Condition(lock)
        """Of the other idle ones."""
        self._threads = [
            threading.Thread(target=self._serve, name=name, daemon=True) for _ in range(self._most)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def refuse_if_full(self) -> None:
        """Say no before a body is read whose request would be refused.

        Raises:
            RequestError: as `submit` does for too many requests.
        """
        if len(self._queue) >= self.limits.requests:
            raise self._full(f"{len(self._queue)} requests wait")

    def submit(self, ticket: Ticket) -> None:
        """Queue a request; its batch is told to `on_done`.

        Raises:
            RequestError: the queue is full, or closed (then without `retry_after`).
        """
        with self._wake:
            if self._closing:
                raise RequestError(REJECTED, "the model is being replaced or the server stops")
            queue, limits = self._queue, self.limits
            if len(queue) >= limits.requests:
                raise self._full(f"{len(queue)} requests wait")
            if self._queued_bytes + ticket.nbytes > limits.nbytes and queue:
                raise self._full(f"{self._queued_bytes} bytes wait")
            self._note_arrival(ticket)
            queue.append(ticket)
            ticket.waiting = True
            self._queued_rows += ticket.rows
            self._queued_bytes += ticket.nbytes
            self._with_deadline += ticket.deadline != FOREVER
            self._call_one()

    def compute_in_place(self, ticket: Ticket) -> bool:
        """Compute a request here and now, in the caller's thread, if it is short and comes alone.

        `on_done` is not told of it: the caller has it.

        Returns:
            Whether it has outputs or an error now; if not, it is to be submitted.
        """
        seconds = self.policy.seconds_for(ticket.rows)
        if not self._in_place or not 0 < seconds <= SHORT_SECONDS:
            return False
        with self._wake:
            now = self._clock()
            alone = not self._computing and not self._queue and not self._closing
            apart = now - self._last_arrival > APART * seconds
            if not (alone and apart and now + 2 * seconds <= ticket.deadline):
                return False
            self._note_arrival(ticket)
            ticket.started = ticket.arrived
            self._computing += 1
        try:
            self._compute(self._engine, [ticket], lambda batch: None)
        except BaseException as error:  # an interrupt, say: the engine is never free again
            self._fail(error)
            raise
        return True

    def cancel(self, ticket: Ticket) -> None:
        """Do not compute it, if it still waits."""
        with self._wake:
            if ticket.waiting:
                ticket.canceled = True
                self._canceled += 1

    def close(self, timeout: float | None = None) -> bool:
        """Compute what waits, take nothing more, end the thread.

        Returns:
            Whether it ended in time; what still waits after it was refused.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._wake:
            self._closing = True
            self._call_all()
        for thread in self._threads:
            thread.join(_left(end))
        with self._wake:
            idle = self._wake.wait_for(self._is_idle, _left(end))
        if idle and not any(thread.is_alive() for thread in self._threads):
            return True
        self._refuse_all("the server stops")
        return False

    def _is_idle(self) -> bool:
        return not self._computing or self._fatal is not None

    def _call_one(self) -> None:
        """Somebody to look at the queue, if there is room for one more batch."""
        if self._computing == self._most:
            return
        if self._waiting:
            self._wake.notify()
        elif not self._led:
            self._bench.notify()

    def _call_all(self) -> None:
        self._wake.notify_all()
        self._bench.notify_all()

    def _note_arrival(self, ticket: Ticket) -> None:
        now = ticket.arrived = self._clock()
        gap = now - self._last_arrival
        self._last_arrival = now
        self._gap = gap if self._gap == FOREVER else self._gap + RECENT * (gap - self._gap)

    def _full(self, what: str) -> RequestError:
        seconds = self.policy.seconds_an_image * self._queued_rows
        return RequestError(REJECTED, f"the queue is full: {what}", max(1, round(seconds)))

    def _serve(self) -> None:
        try:
            self._serve_until_closed()
        except BaseException as error:  # with this thread gone nobody would answer
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Refuse all that waits, take nothing more, and tell it; once."""
        with self._wake:
            if self._fatal is not None:
                return
            self._fatal, self._closing = error, True
            self._call_all()
        try:
            self._refuse_all("the engine failed")
        finally:
            self._on_fatal(error)

    def _serve_until_closed(self) -> None:
        while True:
            taken, dropped, engine = self._take()
            if dropped:
                self._on_done(Batch(dropped))
            if taken:
                self._compute(engine, taken, self._on_done)
            elif not dropped:
                return

    def _take(self) -> tuple[list[Ticket], list[Ticket], Engine]:
        """The next batch, those that are not worth computing, and the engine for the batch.

        There are none of both at the end.
        """
        with self._wake:
            while self._led:
                self._bench.wait()
            self._led = True
            try:
                taken, dropped = self._watch()
            finally:
                self._led = False
            engine = self._engine
            if taken:
                self._computing += 1
                if self._several is not None and (self._computing > 1 or self._queue):
                    engine = self._several.engine
            if self._queue or self._closing:
                self._bench.notify()
            return taken, dropped, engine

    def _watch(self) -> tuple[list[Ticket], list[Ticket]]:
        dropped: list[Ticket] = []
        while True:
            while not self._queue or self._computing == self._most:
                ended = self._fatal is not None or (self._closing and not self._queue)
                if ended or dropped:
                    return [], dropped
                self._sleep(None)
            now = self._clock()
            dropped += self._drop_hopeless(now)
            if not self._queue:
                continue
            until = None
            # Who asks with another shape ends the batch, as a full one is ended.
            if not self._closing and self._queue[-1].shapes == self._queue[0].shapes:
                until = self.policy.waits_until(
                    self._queued_rows, self._queue[0].arrived, self._earliest(), self._gap
                )
            if until is None or until <= now:
                return self._pop(now), dropped
            if dropped:  # they need not wait with the others
                return [], dropped
            self._sleep(until - now)

    def _sleep(self, seconds: float | None) -> None:
        self._waiting = True
        self._wake.wait(seconds)
        self._waiting = False

    def _earliest(self) -> float:
        if not self._with_deadline:
            return FOREVER
        return min(ticket.deadline for ticket in self._queue)

    def _drop_hopeless(self, now: float) -> list[Ticket]:
        """Canceled ones, and those that would be late even if they were computed now and alone."""
        if not self._with_deadline and not self._canceled:
            return []
        self._canceled = 0
        hopeless = [
            ticket
            for ticket in self._queue
            if ticket.canceled
            or (
                ticket.deadline != FOREVER
                and now + self.policy.seconds_for(ticket.rows) > ticket.deadline
            )
        ]
        for ticket in hopeless:
            self._forget(ticket)
            ticket.started = now
            if not ticket.canceled:
                ticket.error = RequestError(LATE, "the deadline passed while the request waited")
        if hopeless:
            self._queue = deque(ticket for ticket in self._queue if ticket.waiting)
        return hopeless

    def _pop(self, now: float) -> list[Ticket]:
        shapes = self._queue[0].shapes
        alike: list[Ticket] = []
        for ticket in self._queue:
            if ticket.shapes != shapes or len(alike) >= self.policy.size:
                break
            alike.append(ticket)
        count = self.policy.company([t.rows for t in alike], [t.deadline for t in alike], now)
        taken = [self._queue.popleft() for _ in range(count)]
        for ticket in taken:
            self._forget(ticket)
            ticket.started = now
        return taken

    def _forget(self, ticket: Ticket) -> None:
        ticket.waiting = False
        self._queued_rows -= ticket.rows
        self._queued_bytes -= ticket.nbytes
        self._with_deadline -= ticket.deadline != FOREVER

    def _compute(
        self, engine: Engine, taken: list[Ticket], on_done: Callable[[Batch], None]
    ) -> None:
        """Give each its outputs or an error, and make room for the next batch."""
        error = compute(engine, taken, self._clock)
        fatal = error is not None and self._is_fatal(error)
        if not fatal:
            with self._wake:
                self._computing -= 1
                if self._closing:
                    self._call_all()
                elif self._queue:
                    self._call_one()
        on_done(Batch(taken))
        if error is not None and fatal:  # never room again
            self._fail(error)

    def _refuse_all(self, words: str) -> None:
        with self._wake:
            left = list(self._queue)
            self._queue.clear()
            for ticket in left:
                self._forget(ticket)
        for ticket in left:
            ticket.error = RequestError(REJECTED, words)
        if left:
            self._on_done(Batch(left))


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())
