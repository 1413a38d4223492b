"""The end of a repository: what was taken is answered, and nothing holds it up for ever."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from polarprune_deploy.serving import repository
from polarprune_deploy.serving.request_errors import REJECTED, RequestError
from tests.deploy.serving.live_repository import (
    SECONDS,
    Asked,
    put,
    run,
)


def test_closing_answers_what_was_taken_also_by_models_that_were_replaced(
    stock: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stock / "1", folder / "net")
    gate, running = threading.Event(), threading.Event()

    async def work() -> None:
        served = Asked(folder)
        await served.repository.look()
        old = served.repository.get("net")
        engine = old._engine
        compute = engine.run

        def slow(*args: Any) -> Any:
            running.set()
            assert gate.wait(SECONDS)
            return compute(*args)

        monkeypatch.setattr(engine, "run", slow)
        asking = [asyncio.create_task(served.ask("net", n)) for n in range(1, 9)]
        assert await asyncio.to_thread(running.wait, SECONDS)
        put(stock / "2", folder / "net")
        await served.repository.look()
        asking += [asyncio.create_task(served.ask("net"))]
        await asyncio.sleep(0)
        closing = asyncio.create_task(served.repository.close(SECONDS))
        await asyncio.sleep(0.02)
        assert not closing.done(), "the old one is still at it"
        assert served.repository.stuck
        with pytest.raises(RequestError, match="the server stops"):
            await served.ask("net")
        gate.set()
        assert await closing
        assert not served.repository.stuck
        assert [(await task)[0] for task in asking] == [1] * 8 + [2]

    run(work())


def test_closing_at_once_is_clean_where_nothing_waits(stock: Path) -> None:
    async def work() -> None:
        served = Asked(stock)
        await served.repository.look()
        assert await served.repository.close(0)
        assert not served.repository.stuck

    run(work())


def test_closing_is_bounded_though_an_engine_hangs(
    stock: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stock / "1", folder / "net")
    gate = threading.Event()
    monkeypatch.setattr(repository, "CLOSE_SECONDS", 0.1)

    async def work() -> None:
        served = Asked(folder)
        await served.repository.look()
        engine = served.repository.get("net")._engine
        monkeypatch.setattr(engine, "run", lambda *_: gate.wait(SECONDS))
        asking = [asyncio.create_task(served.ask("net")) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert not await served.repository.close(0.05)
        assert served.repository.stuck
        gate.set()
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(end, RequestError) for end in ends)

    run(work())


def test_a_load_that_hangs_holds_up_neither_the_others_nor_closing(
    stock: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stock / "1", folder / "net")
    gate, started = threading.Event(), threading.Event()

    def hang(*_: Any) -> Any:
        started.set()
        assert gate.wait(SECONDS)
        raise RuntimeError("too late")

    async def work() -> None:
        served = Asked(folder)
        await served.repository.look()
        monkeypatch.setattr(repository, "load_model", hang)
        put(stock / "2", folder / "slow")
        looking = asyncio.create_task(served.repository.look())
        assert await asyncio.to_thread(started.wait, SECONDS)
        assert not served.repository.ready
        assert ("slow", "1", "LOADING") in served.states()
        with pytest.raises(RequestError, match="model slow is being loaded") as refused:
            served.repository.get("slow")
        assert (refused.value.kind, refused.value.retry_after) == (REJECTED, 1)
        assert (await served.ask("net"))[0] == 1
        looking.cancel()
        assert await served.repository.close(SECONDS), "all that was taken is answered"
        assert served.repository.stuck
        gate.set()

    run(work())


def sticky(*_: Any) -> Any:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_an_error_that_stays_ends_readiness_whether_it_comes_in_serving_or_in_loading(
    stock: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stock / "1", folder / "net")

    async def work() -> None:
        serving, loading = Asked(folder), Asked(folder)
        for served in (serving, loading):
            await served.repository.look()
        monkeypatch.setattr(serving.repository.get("net")._engine, "run", sticky)
        with pytest.raises(RequestError, match="the model failed on this request"):
            await serving.ask("net")
        await asyncio.sleep(0)
        put(stock / "2", folder / "net")
        with monkeypatch.context() as patch:
            patch.setattr(repository, "load_model", sticky)
            await loading.repository.look()
        for served in (serving, loading):
            while not served.failures:
                await asyncio.sleep(0.001)
            assert [name for name, _ in served.failures] == ["net"]
            assert served.repository.broken
            assert not served.repository.ready
            await served.repository.close(SECONDS)

    run(work())
