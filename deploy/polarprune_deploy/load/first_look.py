"""The first answers: is this a server that answers, and what are the right answers?"""

import asyncio
from collections.abc import Sequence

from polarprune.errors import ServerError
from polarprune_deploy.load.connections import Connection, Dialer
from polarprune_deploy.load.endpoint import PATIENCE_SECONDS
from polarprune_deploy.load.http_answers import HttpAnswer


class _Single:
    """Waits for one answer."""

    def __init__(self) -> None:
        self.came: asyncio.Future[HttpAnswer | str] = asyncio.get_running_loop().create_future()

    def answered(self, connection: Connection, answer: HttpAnswer, when: float) -> None:
        self._set(answer)

    def lost(self, connection: Connection, why: str) -> None:
        self._set(why)

    def _set(self, result: HttpAnswer | str) -> None:
        if not self.came.done():
            self.came.set_result(result)


async def ask_each(dialer: Dialer, ring: Sequence[bytes]) -> list[HttpAnswer]:
    """Send the requests one by one, each on a connection of its own.

    Stops at the first answer that is no 200, which is then the last one in the list.

    Raises:
        ServerError: one is not answered, or not in HTTP.
    """
    answers: list[HttpAnswer] = []
    for message in ring:
        answers.append(await _ask(dialer, message))
        if answers[-1].status != 200:
            break
    return answers


async def _ask(dialer: Dialer, message: bytes) -> HttpAnswer:
    url = dialer.endpoint.url
    single = _Single()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            connection = await dialer.dial(single)
            try:
                connection.send(message, 0)
                came = await single.came
            finally:
                connection.close()
                await asyncio.sleep(0)
    except TimeoutError:
        raise ServerError(
            f"{url} does not answer an inference request: nothing within {PATIENCE_SECONDS:.0f} s"
        ) from None
    except OSError as error:
        raise dialer.endpoint.unreachable(error) from None
    if isinstance(came, str):
        raise ServerError(f"{url} does not answer an inference request: {came}")
    return came
