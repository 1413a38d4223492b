"""The two ways to make load: a closed loop of clients, and arrivals on a schedule.

In the closed loop each client sends its next request when the answer to the last one came. In the
open loop requests come when the schedule says, whatever the server does; one that finds no
connection waits for it, and its latency counts from when it was due all the same.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from math import nan

import numpy as np
from numpy.typing import NDArray

from polarprune_deploy.load.answers import FirstAnswers
from polarprune_deploy.load.connections import Connection, Dialer
from polarprune_deploy.load.samples import Outcome, Samples
from polarprune_deploy.load.schedule import LARGEST_LOAD
from polarprune_deploy.load.traffic import Traffic

_REDIAL_SECONDS = 0.05
"""Before a client connects again, so that a dead server is not hammered."""


class ClosedLoop(Traffic):
    """So many clients, each with one request on its way."""

    def __init__(
        self, dialer: Dialer, ring: Sequence[bytes], first: FirstAnswers, clients: int
    ) -> None:
        super().__init__(dialer, ring, first)
        self._clients = clients
        self._working = 0
        self._end = 0.0

    async def run(self, seconds: float) -> Samples:
        """Load for so long, and until the last answers came; may be run again.

        Raises:
            ServerError: the server is gone.
        """
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self.samples, self._working = Samples(), self._clients
        self._end = loop.time() + seconds
        for _ in range(self._clients):
            loop.call_soon(self._start_client)
        await self._until_settled(self._end)
        return self.samples

    def _start_client(self) -> None:
        connection = self._fresh_idle(self._clock())
        if connection is None:
            self._dial()
        else:
            self._free(connection)

    def _free(self, connection: Connection) -> None:
        now = self._clock()
        if now < self._end and len(self.samples) < LARGEST_LOAD:
            ticket = self.samples.add(now, now)
            connection.send(self._ring[ticket % len(self._ring)], ticket)
        else:
            connection.idle_since = now
            self._idle.append(connection)
            self._working -= 1

    def _gone(self) -> None:
        if self._clock() < self._end:
            self._dial()
        else:
            self._working -= 1

    def _refused(self, why: str) -> None:
        now = self._clock()
        self.samples.finish(self.samples.add(now, now), Outcome.FAILED, now, why)
        if now < self._end:
            asyncio.get_running_loop().call_later(_REDIAL_SECONDS, self._start_client)
        else:
            self._working -= 1

    def _settled(self) -> bool:
        return self._working == 0


class OpenLoop(Traffic):
    """Requests on a schedule, over connections that are opened as they are needed."""

    def __init__(
        self, dialer: Dialer, ring: Sequence[bytes], first: FirstAnswers, connections: int
    ) -> None:
        super().__init__(dialer, ring, first)
        self._limit = connections
        self._waiting: deque[int] = deque()  # tickets that have no connection yet
        self._due: list[float] = []
        self._next = 0

    async def run(self, arrivals: NDArray[np.float64], start: float) -> Samples:
        """Send all that arrives, and wait for the answers.

        Args:
            arrivals: seconds after the start, ascending.
            start: of the loop's clock.

        Raises:
            ServerError: the server is gone.
        """
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._due = (start + arrivals).tolist()
        loop.call_soon(self._arrive)
        await self._until_settled(self._due[-1] if self._due else start)
        return self.samples

    def _arrive(self) -> None:
        now = self._clock()
        while self._next < len(self._due) and self._due[self._next] <= now:
            if self.samples.open == 0:
                self._heard = now  # the silence before was nobody's fault
            self._waiting.append(self.samples.add(self._due[self._next], nan))
            self._next += 1
            self._forward()
            now = self._clock()
        if self._next < len(self._due):
            asyncio.get_running_loop().call_at(self._due[self._next], self._arrive)
        else:
            self._look_whether_over()

    def _forward(self) -> None:
        """Send the request that waits longest, or see to it that there will be a connection."""
        connection = self._fresh_idle(self._clock())
        if connection is not None:
            self._free(connection)
        elif self._open < self._limit:
            self._dial()

    def _free(self, connection: Connection) -> None:
        now = self._clock()
        if self._waiting:
            ticket = self._waiting.popleft()
            self.samples.send(ticket, now)
            connection.send(self._ring[ticket % len(self._ring)], ticket)
        else:
            connection.idle_since = now
            self._idle.append(connection)

    def _gone(self) -> None:
        if self._waiting:
            self._forward()

    def _refused(self, why: str) -> None:
        if self._waiting:
            self.samples.finish(self._waiting.popleft(), Outcome.FAILED, self._clock(), why)
        self._gone()

    def _settled(self) -> bool:
        return self._next == len(self._due) and self.samples.open == 0
