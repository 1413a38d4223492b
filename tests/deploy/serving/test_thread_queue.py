"""Work that is done in threads leaves nothing behind, however it ends."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from polarprune_deploy.serving.thread_queue import ThreadQueue


class Document:
    """What the work had read."""


@pytest.fixture
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
def test_what_failed_work_had_read_goes_with_its_failure() -> None:
    read: list[weakref.ref[Document]] = []

    def fail() -> None:
        document = Document()
        read.append(weakref.ref(document))
        raise ValueError("no good")

    async def ask() -> None:
        queue = ThreadQueue(1)
        with pytest.raises(ValueError, match="no good"):
            await queue.run(fail)

    asyncio.run(ask())
    assert read[0]() is None
