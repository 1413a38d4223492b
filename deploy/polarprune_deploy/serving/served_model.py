"""One version of one model: its engine behind a batcher, asked from an event loop."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from polarprune.manifest import Manifest
from polarprune_deploy.serving.batch_policy import FOREVER, BatchPolicy
from polarprune_deploy.serving.batcher import Batch, Batcher, Named, QueueLimits, Ticket
from polarprune_deploy.serving.bucketed_engine import BucketedEngine
from polarprune_deploy.serving.counters import Counters
from polarprune_deploy.serving.infer_requests import InferRequest, Signature
from polarprune_deploy.serving.request_errors import CANCELED, LATE, RequestError


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a loaded model, for people and protocols.

    Attributes:
        name, version: under which it is asked for.
        manifest: of its bundle.
        signature: what it takes and gives, as loaded.
        platform: the protocol's word for what runs it.
        device: "cpu" or "cuda".
        runs: in words: backend, device, settings.
        policy: of its batcher.
        sizes: the batch sizes that are computed; None: any up to the most.
        verified: what was checked before it took traffic, a line a check.
    """

    name: str
    version: str
    manifest: Manifest
    signature: Signature
    platform: str
    device: str
    runs: str
    policy: BatchPolicy
    sizes: tuple[int, ...] | None
    verified: tuple[str, ...] = field(default=())


class ServedModel:
    """Requests in, outputs out; everything of one model that an event loop touches."""

    def __init__(
        self,
        facts: ModelFacts,
        engine: BucketedEngine,
        limits: QueueLimits,
        counters: Counters,
        *,
        timeout: float | None = None,
        loop: asyncio.AbstractEventLoop,
        is_fatal: Callable[[BaseException], bool],
        on_fatal: Callable[[str, BaseException], None],
    ) -> None:
        """Start its batcher.

        Args:
            timeout: seconds, of requests that bring none; None has none.
            loop: where `infer` is awaited.
            is_fatal: which errors of the engine end the process.
            on_fatal: told of such an error, in the engine's thread.
        """
        self.facts, self.counters = facts, counters
        self._engine, self._timeout, self._loop = engine, timeout, loop
        self.batcher = Batcher(
            engine, facts.policy, limits, on_done=self._hand_over, is_fatal=is_fatal,
            on_fatal=lambda error: on_fatal(facts.name, error), name=f"engine {facts.name}",
        )  # fmt: skip

    async def infer(self, request: InferRequest) -> Named:
        """Outputs by name, in the order asked for, or in the model's.

        Raises:
            RequestError: REJECTED, LATE or BROKEN. It is counted.
        """
        future = self._loop.create_future()
        now = time.monotonic()
        timeout = self._timeout if request.timeout is None else request.timeout
        deadline = FOREVER if timeout is None else now + timeout
        nbytes = sum(array.nbytes for array in request.inputs.values())
        ticket = Ticket(request.inputs, request.rows, nbytes, deadline, future)
        timer = None
        try:
            self.batcher.submit(ticket)
            if timeout is not None:
                timer = self._loop.call_later(timeout, _expire, future)
            outputs: Named = await future
        except RequestError as error:
            if not ticket.computed:
                self.batcher.cancel(ticket)
            self.counters.failed(error.kind, time.monotonic() - now)
            error.counted = True
            raise
        except asyncio.CancelledError:
            self.batcher.cancel(ticket)
            self.counters.failed(CANCELED, time.monotonic() - now)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        self.counters.answered(
            (ticket.arrived, ticket.started, ticket.assembled, ticket.computed), ticket.rows
        )
        if request.outputs:
            return {name: outputs[name] for name in request.outputs}
        return outputs

    def close(self, timeout: float | None = None) -> bool:
        """Answer what waits, then free the engine; not in the event loop's thread.

        Returns:
            Whether all was answered in time.
        """
        drained = self.batcher.close(timeout)
        if drained:
            self._engine.close()
        return drained

    def _hand_over(self, batch: Batch) -> None:
        self.counters.computed(batch)
        with suppress(RuntimeError):  # the loop has ended, and with it everybody who asked
            self._loop.call_soon_threadsafe(_settle, batch.tickets)


def _settle(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        future: asyncio.Future[Any] = ticket.token
        if future.done():
            continue
        if ticket.error is not None:
            future.set_exception(ticket.error)
        elif ticket.outputs is not None:
            future.set_result(ticket.outputs)
        else:  # canceled by its sender
            future.set_exception(RequestError(CANCELED, "the request was canceled"))


def _expire(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(RequestError(LATE, "the deadline passed before there was a result"))
