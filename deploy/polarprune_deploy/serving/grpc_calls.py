"""One call from its arrival to exactly one status: token, bounds, request id, errors in words.

Messages are read here as bytes, not by gRPC before a handler is asked: so that a stranger is sent
away before anything of his is held, and that bytes which are no message get an answer in words.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc

from polarprune_deploy.serving.authorization import check_token
from polarprune_deploy.serving.held_bytes import Held, Room
from polarprune_deploy.serving.request_errors import (
    BAD,
    BROKEN,
    GRPC_STATUS,
    LATE,
    REJECTED,
    UNFORESEEN,
    RequestError,
)
from polarprune_deploy.serving.request_ids import RequestIds
from polarprune_deploy.serving.serve_options import ServeOptions

Answer = Callable[[bytes, float | None], Awaitable[Any]]
"""From a message on the wire, and the seconds left for it, to a message object."""
QUIET_SECONDS, LONGEST_UNQUIET_SECONDS = 0.1, 1.0
"""At the end: how long nobody may have called, and how long that is waited for."""

log = logging.getLogger("polarprune.serve")


class GrpcCalls:
    """What all calls have in common."""

    def __init__(self, options: ServeOptions, token: bytes | None, held: Held) -> None:
        """No call is open yet.

        Args:
            token: that calls must bring; None for none.
            held: shared with the other protocol.
        """
        self._options, self._token, self._held = options, token, held
        self._ids = RequestIds()
        self._open = 0
        self._last_arrival = 0.0

    def unary(self, path: str, answer: Answer, *, to_anybody: bool = False) -> Any:
        """One message in, one out.

        Args:
            path: for the log.
            answer: may raise whatever it likes.
            to_anybody: without a token.
        """

        async def handle(_: Any, context: Any) -> bytes:
            async def work() -> bytes:
                with self._held.room() as room:
                    content = await self.read(context, room)
                    message = await answer(content, context.time_remaining())
                    sent: bytes = message.SerializeToString()
                    return sent

            done: bytes = await self._guard(context, path, work, to_anybody)
            return done

        # As a stream of one, whose message we read ourselves; on the wire it is the same.
        return grpc.stream_unary_rpc_method_handler(handle)

    def stream(self, path: str, work: Callable[[Any], Awaitable[None]]) -> Any:
        """Messages in and out as the work likes, which is given the call's context."""

        async def handle(_: Any, context: Any) -> None:
            await self._guard(context, path, lambda: work(context), to_anybody=False)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def quiet(self) -> None:
        """Wait until no call has come for a moment, while those that come are refused.

        gRPC's own end cuts off calls that arrive meanwhile, with a status that says nothing.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_UNQUIET_SECONDS):
                while (rest := self._last_arrival + QUIET_SECONDS - time.monotonic()) > 0:
                    await asyncio.sleep(rest)

    async def read(self, context: Any, room: Room) -> bytes:
        """The one message that is expected now.

        Raises:
            RequestError: BAD where none comes, LATE where it does not come in time, REJECTED where
                there is no room for it.
        """
        seconds = self._options.bounds.body_seconds
        try:
            async with asyncio.timeout(seconds):
                content = await context.read()
        except TimeoutError:
            raise RequestError(LATE, f"no message came within {seconds:g} seconds") from None
        if content is grpc.aio.EOF:
            raise RequestError(BAD, "the call ended without a message")
        room.grow(len(content))
        message: bytes = content
        return message

    async def _guard(
        self, context: Any, path: str, work: Callable[[], Awaitable[Any]], to_anybody: bool
    ) -> Any:
        start = self._last_arrival = time.monotonic()
        metadata = dict(context.invocation_metadata())
        number = self._ids.of(_text(metadata.get("x-request-id", "")))
        trailer: tuple[tuple[str, str], ...] = (("x-request-id", number),)
        refusal, result = None, None
        try:
            if not to_anybody:
                check_token(self._token, _text(metadata.get("authorization", "")).encode())
            with self._place():
                result = await work()
        except grpc.aio.BaseError:  # the call has ended under our hands
            raise
        except Exception as error:
            refusal = refused(error, number)
        status = "OK" if refusal is None else GRPC_STATUS[refusal.kind]
        if self._options.access_log:
            log.info(
                "request", extra={"request_id": number, "path": path, "status": status,
                                  "ms": round((time.monotonic() - start) * 1e3, 3)},
            )  # fmt: skip
        if refusal is None:
            context.set_trailing_metadata(trailer)
            return result
        if refusal.retry_after is not None:
            trailer += (("retry-after", str(refusal.retry_after)),)
        with suppress(grpc.aio.InternalError):  # the sender has gone, or was refused by gRPC
            await context.abort(grpc.StatusCode[status], str(refusal), trailer)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._open >= self._options.bounds.connections:
            raise RequestError(REJECTED, "too many calls are open", 1)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def refused(error: Exception, number: str) -> RequestError:
    """What a sender is told of an exception; what is ours to repair is logged."""
    if isinstance(error, RequestError):
        if error.kind == BROKEN:
            log.error("failed", extra={"request_id": number}, exc_info=error.__cause__)
        return error
    log.error("failed", extra={"request_id": number}, exc_info=error)
    return RequestError(BROKEN, UNFORESEEN)


def _text(value: str | bytes) -> str:
    """A value of metadata; bytes are what is no text."""
    return value if isinstance(value, str) else ""
