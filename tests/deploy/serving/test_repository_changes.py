"""Bundles that are replaced, break, or go while a server serves them."""

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polarprune_deploy.serving import bundle_folders, repository
from polarprune_deploy.serving.request_errors import REJECTED, UNKNOWN, RequestError
from tests.deploy.serving.live_repository import (
    SECONDS,
    Asked,
    garbage_model,
    half_copied,
    no_samples,
    other_outputs,
    put,
    run,
    serve,
    truncated_manifest,
)


@pytest.mark.parametrize("way", ["swapped", "versions"])
def test_a_bundle_that_is_replaced_under_load_loses_no_request_and_mixes_no_answer(
    way: str, stock: Path, folder: Path
) -> None:
    def place(number: int) -> Path:
        return folder / "net" / str(number + 1) if way == "versions" else folder / "net"

    put(stock / "0", place(0))

    async def work() -> None:
        served, done = Asked(folder), asyncio.Event()
        await served.repository.look()

        seen: list[list[tuple[int, str]]] = [[] for _ in range(12)]

        async def customer(answers: list[tuple[int, str]]) -> None:
            generator = np.random.default_rng(0)
            while not done.is_set():
                answers.append(await served.ask("net", int(generator.integers(1, 9))))

        async def all_saw(number: int) -> None:
            while not all(answers and answers[-1][0] == number for answers in seen):
                await asyncio.sleep(0.001)

        customers = [asyncio.create_task(customer(answers)) for answers in seen]
        await all_saw(0)
        for number in range(1, 6):
            await asyncio.to_thread(put, stock / str(number), place(number))
            await served.repository.look()
            assert (await served.ask("net"))[0] == number, "it serves as soon as it is said to"
            await asyncio.sleep(0.02)
            assert served.repository.ready
        await all_saw(5)
        done.set()
        await asyncio.gather(*customers)
        versions = set[str]()
        asked = 5
        for answers in seen:
            numbers = [number for number, _ in answers]
            assert numbers == sorted(numbers), "nobody goes back to an older one"
            asked += len(numbers)
            versions |= {version for _, version in answers}
            if way == "versions":
                assert all(int(version) == number + 1 for number, version in answers)
        assert versions == ({"1"} if way == "swapped" else set("123456"))
        counts = [counters.snapshot() for _, _, counters in served.repository.counters]
        assert sum(now.success for now in counts) == asked
        assert sum(sum(now.failures.values()) for now in counts) == 0
        assert await served.repository.close(SECONDS)

    run(work())


BROKEN = [
    (garbage_model, "the manifest says"),
    (truncated_manifest, "manifest.json is not JSON"),
    (half_copied, "it is truncated or was changed after export"),
    (other_outputs, "do not serve this bundle on this machine"),
    (no_samples, "has no parity.safetensors to be checked with"),
]


@pytest.mark.parametrize(("damage", "words"), BROKEN, ids=[d.__name__ for d, _ in BROKEN])
def test_a_bundle_that_does_not_hold_changes_nothing_until_it_is_repaired(
    damage: Callable[[Path], None], words: str, stock: Path, folder: Path
) -> None:
    put(stock / "1", folder / "net")

    async def work(served: Asked) -> None:
        broken = folder.parent / "broken"
        shutil.copytree(stock / "2", broken)
        damage(broken)
        put(broken, folder / "net")
        put(broken, folder / "fresh")
        await served.repository.look()
        assert await served.ask("net", 4) == (1, "1")
        assert ("net", "1", "READY") in served.states()
        unavailable = [e for e in served.repository.index() if e.state == "UNAVAILABLE"]
        assert [entry.name for entry in unavailable] == ["fresh", "net"]
        assert all(words in entry.reason and "\n" not in entry.reason for entry in unavailable)
        assert served.repository.missing == ["fresh"]
        assert not served.repository.ready, "one of two does not serve at all"
        with pytest.raises(RequestError, match="model fresh is not available") as refused:
            served.repository.get("fresh")
        assert refused.value.kind == REJECTED
        put(stock / "3", folder / "net")
        put(stock / "4", folder / "fresh")
        await served.repository.look()
        assert (await served.ask("net"), await served.ask("fresh")) == ((3, "1"), (4, "1"))
        assert served.repository.ready

    serve(folder, work)


def test_what_failed_is_not_tried_again_before_it_changes(
    stock: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(stock / "1", folder / "net")
    garbage_model(folder / "net")

    async def work() -> None:
        served = Asked(folder)
        for _ in range(3):
            await served.repository.look()
        tries = [record for record in caplog.records if "not loaded" in record.message]
        assert len(tries) == 1
        shutil.copy(stock / "1" / "model.onnx", folder / "net" / "model.onnx")
        await served.repository.look()
        assert (await served.ask("net"))[0] == 1
        assert await served.repository.close(SECONDS)

    run(work())


def test_what_failed_is_tried_again_when_somebody_says_so(
    stock: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stock / "0", folder / "a")
    put(stock / "1", folder / "b")
    load, loads, short_of_memory = repository.load_model, [], True

    def load_model(path: Path, name: str, *args: Any) -> Any:
        loads.append(name)
        if name == "b" and short_of_memory:
            raise MemoryError
        return load(path, name, *args)

    monkeypatch.setattr(repository, "load_model", load_model)

    async def work(served: Asked) -> None:
        nonlocal short_of_memory
        short_of_memory = False
        await served.repository.look()
        assert served.states() == [("a", "1", "READY"), ("b", "1", "UNAVAILABLE")]
        await served.repository.look(again=True)
        assert served.states() == [("a", "1", "READY"), ("b", "1", "READY")]
        await served.repository.look(again=True)
        assert loads == ["a", "b", "b"]
        assert await served.ask("b") == (1, "1")

    serve(folder, work)


def test_a_bundle_that_may_be_read_at_last_is_loaded_though_its_content_has_not_changed(
    stock: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stock / "0", folder / "a")
    open_path = Path.open

    def may_open(path: Path, *args: Any, **more: Any) -> Any:
        """The system's answer to everybody but root."""
        if path.name == "model.onnx" and not path.stat().st_mode & 0o400:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_path(path, *args, **more)

    monkeypatch.setattr(Path, "open", may_open)

    async def work(served: Asked) -> None:
        shutil.copytree(stock / "1", folder / ".new")
        (folder / ".new" / "model.onnx").chmod(0)
        shutil.rmtree(folder / "a")
        (folder / ".new").rename(folder / "a")
        await served.repository.look()
        assert await served.ask("a") == (0, "1")
        assert "Permission denied" in served.reason()
        (folder / "a" / "model.onnx").chmod(0o644)
        await served.repository.look()
        assert await served.ask("a") == (1, "1")
        assert served.states() == [("a", "1", "READY")]

    serve(folder, work)


def test_the_same_bundle_touched_is_loaded_again_and_counts_on(stock: Path, folder: Path) -> None:
    put(stock / "1", folder / "net")

    async def work(served: Asked) -> None:
        first = served.repository.get("net")
        await served.ask("net", 3)
        await served.repository.look()
        assert served.repository.get("net") is first, "nothing has changed"
        os.utime(folder / "net" / "model.onnx", (1, 1))
        await served.repository.look()
        assert served.repository.get("net") is not first
        await served.ask("net", 4)
        ((_, _, counters),) = served.repository.counters
        assert (counters.snapshot().success, counters.snapshot().inferences) == (2, 7)

    serve(folder, work)


def test_a_model_goes_when_its_bundle_has_been_away_for_two_looks(
    stock: Path, folder: Path
) -> None:
    put(stock / "1", folder / "net")
    put(stock / "2", folder / "other")

    async def work(served: Asked) -> None:
        for _ in range(2):  # away for a moment, back again
            (folder / "net").rename(folder / ".away")
            await served.repository.look()
            assert (await served.ask("net"))[0] == 1
            (folder / ".away").rename(folder / "net")
            await served.repository.look()
        (folder / "net").rename(folder / ".away")
        for _ in range(2):
            await served.repository.look()
        with pytest.raises(RequestError) as gone:
            served.repository.get("net")
        assert gone.value.kind == UNKNOWN
        assert served.states() == [("other", "1", "READY")]
        assert served.repository.ready

    serve(folder, work)


def failing(call: Callable[..., Any], path: Path, code: int) -> Callable[..., Any]:
    """The call, on a disk that fails for whatever lies at or below a path."""

    def attempt(where: Any, *args: Any, **more: Any) -> Any:
        if Path(where) == path or path in Path(where).parents:
            raise OSError(code, os.strerror(code), str(where))
        return call(where, *args, **more)

    return attempt


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_fails_takes_no_model_away(
    code: int, stock: Path, folder: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    put(stock / "1", folder / "net")
    put(stock / "2", folder / "other")

    async def work(served: Asked) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(bundle_folders.os, "listdir", failing(os.listdir, folder, code))
            for _ in range(4):
                with pytest.raises(OSError, match=os.strerror(code)):
                    await served.repository.look()
        with monkeypatch.context() as patch:
            patch.setattr(bundle_folders.os, "listdir", failing(os.listdir, folder / "net", code))
            patch.setattr(Path, "stat", failing(Path.stat, folder / "net", code))
            put(stock / "3", folder / "other")
            for _ in range(4):
                await served.repository.look()
            assert (await served.ask("net"))[0] == 1
            assert (await served.ask("other"))[0] == 3, "the others go on as ever"
        warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
        assert warned == [
            f"the folder 'net' cannot be read ({os.strerror(code)}); what serves from it goes on"
        ]
        put(stock / "4", folder / "net")
        await served.repository.look()
        assert (await served.ask("net"))[0] == 4
        assert served.repository.ready

    serve(folder, work)


def test_a_folder_that_goes_altogether_takes_no_model_away(stock: Path, folder: Path) -> None:
    put(stock / "1", folder / "net")

    async def work(served: Asked) -> None:
        shutil.rmtree(folder)
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                await served.repository.look()
        assert (await served.ask("net"))[0] == 1

    serve(folder, work)
