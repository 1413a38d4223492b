"""The line before the threads that decode images."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from polarprune_deploy.serving.request_errors import REJECTED, RequestError
from polarprune_deploy.serving.thread_queue import ThreadQueue


class Works:
    """Blocking work that is let go by hand, and notes when it runs."""

    def __init__(self) -> None:
        self.going = threading.Semaphore(0)
        self.started: list[int] = []
        self.most = self.now = 0
        self._lock = threading.Lock()

    def work(self, number: int) -> Callable[[], int]:
        def run() -> int:
            with self._lock:
                self.started.append(number)
                self.now += 1
                self.most = max(self.most, self.now)
            assert self.going.acquire(timeout=30)
            with self._lock:
                self.now -= 1
            return number

        return run


def test_only_so_many_images_are_decoded_at_once_in_their_order() -> None:
    works = Works()

    async def ask() -> list[int]:
        images = ThreadQueue(2)
        asked = [asyncio.create_task(images.run(works.work(number))) for number in range(7)]
        while len(works.started) < 2:
            await asyncio.sleep(0.001)
        for _ in range(7):
            works.going.release()
        return await asyncio.gather(*asked)

    assert asyncio.run(ask()) == list(range(7))
    assert works.most == 2
    assert sorted(works.started[:2]) == [0, 1]
    assert all(abs(place - number) <= 1 for place, number in enumerate(works.started))


def test_who_leaves_the_line_is_never_decoded_and_holds_up_nobody() -> None:
    works = Works()

    async def ask() -> list[Any]:
        images = ThreadQueue(1)
        asked = [asyncio.create_task(images.run(works.work(number))) for number in range(4)]
        while not works.started:
            await asyncio.sleep(0.001)
        asked[0].cancel()  # it runs: its thread is kept until it is done
        asked[1].cancel()
        await asyncio.sleep(0.01)
        assert works.started == [0]
        for _ in range(3):
            works.going.release()
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    assert [type(one) for one in found[:2]] == [asyncio.CancelledError] * 2
    assert found[2:] == [2, 3]
    assert works.started == [0, 2, 3]


def test_who_waits_too_long_is_told_to_come_again() -> None:
    works = Works()

    async def ask() -> tuple[RequestError, int]:
        images = ThreadQueue(1, longest_wait=0.05)
        first = asyncio.create_task(images.run(works.work(0)))
        while not works.started:
            await asyncio.sleep(0.001)
        with pytest.raises(RequestError, match="too many images wait") as caught:
            await images.run(works.work(1))
        works.going.release()
        return caught.value, await first

    error, first = asyncio.run(ask())
    assert (error.kind, error.retry_after, first) == (REJECTED, 1, 0)
    assert works.started == [0]
