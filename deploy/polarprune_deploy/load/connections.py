"""Connections that are kept: one request on its way on each, its answer told by a call."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from polarprune_deploy.load.endpoint import Endpoint, reason_of
from polarprune_deploy.load.http_answers import AnswerReader, GarbledAnswer, HttpAnswer

NO_TICKET = -1


class Listener(Protocol):
    """Who is told what comes of a connection."""

    def answered(self, connection: "Connection", answer: HttpAnswer, when: float) -> None:
        """The request on its way has its answer; `when` its last byte came, seconds."""
        ...

    def lost(self, connection: "Connection", why: str) -> None:
        """The connection is gone, and with it the request on its way, if `ticket` says one."""
        ...


class Connection(asyncio.Protocol):
    """One connection; `ticket` is the number of the request on its way, or `NO_TICKET`."""

    __slots__ = (
        "_clock", "_lasting", "_listener", "_reader", "_transport", "idle_since", "ticket",
    )  # fmt: skip

    def __init__(self, listener: Listener, clock: Callable[[], float]) -> None:
        self._listener, self._clock = listener, clock
        self._reader = AnswerReader()
        self._transport: asyncio.Transport | None = None
        self._lasting = True
        self.ticket = NO_TICKET
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._lasting and self._transport is not None

    def send(self, message: bytes, ticket: int) -> None:
        """Put a whole request on its way."""
        assert self._transport is not None
        self.ticket = ticket
        self._transport.write(message)

    def close(self) -> None:
        """Hang up; the listener is not told."""
        self._lasting = False
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        when = self._clock()
        if self._transport is None:
            return
        if self.ticket == NO_TICKET:
            self._drop("bytes came that nobody had asked for")
            return
        try:
            answer = self._reader.feed(data)
        except GarbledAnswer as error:
            self._drop(str(error))
            return
        if answer is not None:
            self._tell(answer, when)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        when = self._clock()
        if self._transport is None:
            return
        if isinstance(exc, OSError):
            self._drop(reason_of(exc))
            return
        try:
            answer = self._reader.end()
        except GarbledAnswer as error:
            self._drop(str(error))
            return
        self._tell(answer, when)

    def _tell(self, answer: HttpAnswer, when: float) -> None:
        if answer.last:
            self.close()
        self._listener.answered(self, answer, when)

    def _drop(self, why: str) -> None:
        self.close()
        self._listener.lost(self, why)


class Dialer:
    """Makes connections to one endpoint, whose name was looked up once."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Look the name up.

        Raises:
            ServerError: nobody answers.
        """
        self.endpoint = endpoint
        self._address, self._port = endpoint.address()
        self._tls = ssl.create_default_context() if endpoint.secure else None

    async def dial(self, listener: Listener) -> Connection:
        """A new connection.

        Raises:
            OSError: there is none to be had.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(listener, loop.time),
            self._address,
            self._port,
            ssl=self._tls,
            server_hostname=self.endpoint.host if self._tls else None,
        )
        return connection
