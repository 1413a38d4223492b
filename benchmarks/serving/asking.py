"""Connections on which one request at a time is asked, and its answer awaited."""

import asyncio
import time

from polarprune_deploy.load.connections import Connection, Dialer
from polarprune_deploy.load.endpoint import parse_endpoint, reason_of
from polarprune_deploy.load.http_answers import HttpAnswer

IDLE_SECONDS = 5.0
"""A connection that was left alone for longer is not used again."""


class Broken(Exception):
    """A request was sent and no whole answer came; the message says why."""


class NotConnected(Exception):
    """There was no connection to be had, so nothing was sent; the message says why."""


class Line:
    """One connection."""

    def __init__(self) -> None:
        self._came: asyncio.Future[HttpAnswer | str] | None = None
        self._connection: Connection | None = None
        self.since = 0.0

    @classmethod
    async def open(cls, dialer: Dialer) -> "Line":
        """Connect.

        Raises:
            NotConnected: why not.
        """
        line = cls()
        try:
            line._connection = await dialer.dial(line)
        except OSError as error:
            raise NotConnected(reason_of(error)) from None
        return line

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._connection is not None and self._connection.usable

    async def ask(self, message: bytes, seconds: float) -> HttpAnswer:
        """Send a whole request and wait for its answer.

        Raises:
            Broken: there is none.
        """
        assert self._connection is not None
        self._came = asyncio.get_running_loop().create_future()
        self._connection.send(message, 0)
        try:
            async with asyncio.timeout(seconds):
                came = await self._came
        except TimeoutError:
            self.close()
            raise Broken(f"no answer within {seconds:g} s") from None
        self._connection.ticket = -1
        self.since = time.monotonic()
        if isinstance(came, str):
            raise Broken(came)
        return came

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()

    def answered(self, connection: Connection, answer: HttpAnswer, when: float) -> None:
        """Called by the connection."""
        self._settle(answer)

    def lost(self, connection: Connection, why: str) -> None:
        """Called by the connection."""
        self._settle(why)

    def _settle(self, came: HttpAnswer | str) -> None:
        if self._came is not None and not self._came.done():
            self._came.set_result(came)


class Lines:
    """As many connections to one server as are needed at a time."""

    def __init__(self, url: str) -> None:
        """To a server that answers.

        Raises:
            ServerError: it does not.
        """
        self.url = url
        self._dialer = Dialer(parse_endpoint(url))
        self._idle: list[Line] = []
        self.opened = 0

    async def ask(self, message: bytes, seconds: float, *, fresh: bool = False) -> HttpAnswer:
        """Send a request on a connection that is free, or on a new one.

        Args:
            fresh: on one that is opened for it and closed behind it.

        Raises:
            NotConnected: there is no connection to be had.
            Broken: no whole answer came.
        """
        line = None if fresh else self._free()
        if line is None:
            line = await Line.open(self._dialer)
            self.opened += 1
        answer = await line.ask(message, seconds)
        if fresh:
            line.close()
        elif line.usable:
            self._idle.append(line)
        return answer

    def close(self) -> None:
        """Hang up everywhere."""
        for line in self._idle:
            line.close()
        self._idle.clear()

    def _free(self) -> Line | None:
        now = time.monotonic()
        while self._idle:
            line = self._idle.pop()
            if line.usable and now - line.since < IDLE_SECONDS:
                return line
            line.close()
        return None
