"""ModelStreamInfer: many requests over one call, answered in their order."""

import asyncio
from collections.abc import Awaitable, Callable

from polarprune_deploy.serving.request_errors import REJECTED, RequestError

MOST_IN_FLIGHT = 64
"""Requests of one stream that are read and not answered yet."""


class InferStreams:
    """All open streams; at the end they are told to finish."""

    def __init__(self) -> None:
        """None is open."""
        self._readers: set[asyncio.Task[None]] = set()
        self._closing = False

    def close(self) -> None:
        """Read nothing more; what was read is answered, then the streams end."""
        self._closing = True
        for reader in self._readers:
            reader.cancel()

    async def run(
        self,
        read: Callable[[], Awaitable[bytes | None]],
        answer: Callable[[bytes], Awaitable[bytes]],
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Answer one stream until it ends.

        Args:
            read: the next request; None at the end.
            answer: it must not raise but for the stream's end.
            write: one answer.

        Raises:
            RequestError: REJECTED, where it was this server that ended it.
        """
        free = asyncio.Semaphore(MOST_IN_FLIGHT)
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        running: set[asyncio.Task[bytes]] = set()

        async def take() -> None:
            while not self._closing:
                await free.acquire()
                content = await read()
                if content is None:
                    return
                task = asyncio.ensure_future(answer(content))
                running.add(task)
                answers.put_nowait(task)

        reader = asyncio.create_task(take())
        reader.add_done_callback(lambda _: answers.put_nowait(None))
        self._readers.add(reader)
        try:
            while (task := await answers.get()) is not None:
                await write(await task)
                running.discard(task)
                free.release()
            if self._closing:
                raise RequestError(REJECTED, "the server stops")
            reader.result()
        finally:
            self._readers.discard(reader)
            left = [reader, *running]
            for each in left:
                each.cancel()
            await asyncio.gather(*left, return_exceptions=True)
