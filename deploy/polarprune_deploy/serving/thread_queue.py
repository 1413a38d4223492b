"""A few threads for work that would hold up everybody else, and the line before them.

To decode an image at the bound takes up to a second and half a gigabyte, and to read JSON at the
bound is not much better, so that only so many run at once. Who waits in line for longer than a
bound is told to come again.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from polarprune_deploy.serving.request_errors import REJECTED, RequestError

LONGEST_WAIT = 5.0
"""Seconds."""
Result = TypeVar("Result")


class ThreadQueue:
    """First come, first served; used from one event loop."""

    def __init__(
        self, threads: int, what: str = "images", longest_wait: float = LONGEST_WAIT
    ) -> None:
        """No thread is started yet.

        Args:
            threads: at most.
            what: is worked on, in words.
            longest_wait: seconds in line.
        """
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=what)
        self._free = asyncio.Semaphore(threads)
        self._what, self._longest_wait = what, longest_wait

    async def run(self, work: Callable[[], Result]) -> Result:
        """What the work gives, done in a thread once one is free.

        A caller that is canceled in line never gets a thread; work that runs is finished, and keeps
        its thread until then.

        Raises:
            RequestError: REJECTED; no thread became free in time. And whatever the work raises.
        """
        try:
            async with asyncio.timeout(self._longest_wait):
                await self._free.acquire()
        except TimeoutError:
            raise RequestError(REJECTED, f"too many {self._what} wait for their turn", 1) from None
        loop = asyncio.get_running_loop()

        def release(_: "Future[Result]") -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it everybody in line
                loop.call_soon_threadsafe(self._free.release)

        started = self._pool.submit(work)
        started.add_done_callback(release)
        try:
            return await asyncio.wrap_future(started)
        finally:
            # A failure's traceback holds this frame, which would hold the failure: all that the
            # work had read would stay until a far collection of garbage.
            del started
