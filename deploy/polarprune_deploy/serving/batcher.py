"""The dynamic batcher: requests in from any thread, batches through one engine, results out.

One thread owns the engine. The queue is bounded in requests and in bytes, and says no at once. A
request that was canceled, or that cannot be in time any more, is never computed. Results go out by
position: those of a request are the rows that its inputs had in the batch.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from polarprune_deploy.backends.runners import Array
from polarprune_deploy.serving.batch_policy import FOREVER, BatchPolicy
from polarprune_deploy.serving.request_errors import BROKEN, LATE, REJECTED, RequestError

Named = dict[str, Array]
RECENT = 0.1
"""Weight of the last gap in the mean of the gaps between arrivals."""


class Engine(Protocol):
    """What computes batches; used by the batcher's thread alone."""

    def assemble(self, parts: Sequence[Named], rows: int) -> Named:
        """The inputs of several requests, one behind the other, filled up to a size it takes."""
        ...

    def run(self, batch: Named, rows: int) -> Named:
        """Outputs of the first `rows` images, batch first; nobody else writes into them later."""
        ...


@dataclass(eq=False, slots=True)
class Ticket:
    """One request from its arrival to its result.

    Attributes:
        inputs: by name, batch first.
        rows: images.
        nbytes: of the inputs, as held in memory.
        deadline: on the batcher's clock, seconds.
        token: whatever the sender recognises it by.
        arrived, started, assembled, computed: seconds; how it fared.
        outputs: by name, or None with the `error`.
        waiting: whether it is in the queue.
        canceled: whether its sender took it back while it was.
    """

    inputs: Named
    rows: int
    nbytes: int
    deadline: float = FOREVER
    token: Any = None
    arrived: float = 0.0
    started: float = 0.0
    assembled: float = 0.0
    computed: float = 0.0
    outputs: Named | None = None
    error: RequestError | None = None
    waiting: bool = False
    canceled: bool = False

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of one image; only equal ones can be in one batch."""
        return tuple(array.shape[1:] for array in self.inputs.values())


@dataclass(frozen=True)
class QueueLimits:
    """What may wait at a time; what is being computed does not count.

    One request always may, whatever its bytes.
    """

    requests: int = 256
    nbytes: int = 256 << 20


@dataclass
class Batch:
    """Tickets that were computed together."""

    tickets: Sequence[Ticket]
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = sum(ticket.rows for ticket in self.tickets)


class Batcher:
    """A bounded queue before one engine."""

    def __init__(
        self,
        engine: Engine,
        policy: BatchPolicy,
        limits: QueueLimits,
        *,
        on_done: Callable[[Batch], None],
        on_fatal: Callable[[BaseException], None],
        is_fatal: Callable[[BaseException], bool] = lambda error: False,
        name: str = "batcher",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the engine's thread.

        Args:
            engine: computes the batches.
            policy: when to start, with how many.
            limits: what may wait.
            on_done: told, in the engine's thread, of each batch whose tickets have outputs or
                errors. If it raises, that is fatal.
            on_fatal: told of an error after which the engine's results cannot be trusted; all that
                waits has been refused then. Nothing more is taken, and it is told once.
            is_fatal: which errors of the engine those are.
            name: of the thread.
            clock: seconds.
        """
        self.policy, self.limits = policy, limits
        self._engine, self._on_done, self._on_fatal = engine, on_done, on_fatal
        self._is_fatal, self._clock = is_fatal, clock
        self._queue: deque[Ticket] = deque()
        self._queued_rows = self._queued_bytes = 0
        self._with_deadline = self._canceled = 0
        self._gap = FOREVER
        self._last_arrival = -FOREVER
        self._waiting = False
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

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
            now = ticket.arrived = self._clock()
            gap = now - self._last_arrival
            self._last_arrival = now
            self._gap = gap if self._gap == FOREVER else self._gap + RECENT * (gap - self._gap)
            queue.append(ticket)
            ticket.waiting = True
            self._queued_rows += ticket.rows
            self._queued_bytes += ticket.nbytes
            self._with_deadline += ticket.deadline != FOREVER
            if self._waiting:
                self._wake.notify()

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
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            return True
        self._refuse_all("the server stops")
        return False

    def _full(self, what: str) -> RequestError:
        seconds = self.policy.seconds_for(self.policy.size) / self.policy.size * self._queued_rows
        return RequestError(REJECTED, f"the queue is full: {what}", max(1, round(seconds)))

    def _serve(self) -> None:
        try:
            fatal = self._serve_until_closed()
        except BaseException as error:  # with this thread gone nobody would answer
            fatal = error
        if fatal is None:
            return
        with self._wake:
            self._closing = True
        try:
            self._refuse_all("the engine failed")
        finally:
            self._on_fatal(fatal)

    def _serve_until_closed(self) -> BaseException | None:
        """The error that ended it, if one did."""
        while True:
            taken, dropped = self._take()
            if dropped:
                self._on_done(Batch(dropped))
            if taken:
                error = self._compute(taken)
                self._on_done(Batch(taken))
                if error is not None and self._is_fatal(error):
                    return error
            elif not dropped:
                return None

    def _take(self) -> tuple[list[Ticket], list[Ticket]]:
        """The next batch, and those that are not worth computing; both empty at the end."""
        dropped: list[Ticket] = []
        with self._wake:
            while True:
                while not self._queue:
                    if self._closing or dropped:
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

    def _compute(self, taken: list[Ticket]) -> Exception | None:
        """Give each its outputs or an error of its own, whose cause is returned."""
        rows = sum(ticket.rows for ticket in taken)
        try:
            batch = self._engine.assemble([ticket.inputs for ticket in taken], rows)
            assembled = self._clock()
            outputs = self._engine.run(batch, rows)
            for name, array in outputs.items():
                if len(array) != rows:
                    raise ValueError(f"output {name} has {len(array)} rows for {rows} images")
        except Exception as error:
            for ticket in taken:
                ticket.error = RequestError(BROKEN, "the model failed on this request")
                ticket.error.__cause__ = error
                ticket.computed = self._clock()
            return error
        done, start = self._clock(), 0
        for ticket in taken:
            end = start + ticket.rows
            ticket.outputs = {name: array[start:end] for name, array in outputs.items()}
            ticket.assembled, ticket.computed = assembled, done
            start = end
        return None

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
