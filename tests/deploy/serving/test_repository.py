"""Real bundles in a folder that changes under a server: what serves, and what never does."""

import asyncio
import dataclasses
import errno
import logging
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from small_bundles import CLASSES, ENGINE, SIDE, small_model, write_small_bundle

from polarprune.manifest import FileEntry, read_manifest, write_manifest
from polarprune_deploy.serving import bundle_folders, repository
from polarprune_deploy.serving.bundle_folders import find_bundles
from polarprune_deploy.serving.infer_requests import InferRequest
from polarprune_deploy.serving.metrics import COUNTERS, LATENCY, render_metrics
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.request_errors import REJECTED, UNKNOWN, RequestError
from polarprune_deploy.serving.serve_options import ServeOptions
from polarprune_deploy.serving.served_model import ServedModel
from polarprune_export.onnx_session import open_session, run_session

SECONDS = 30
BIAS = 100.0
"""Between two models' answers to one image; far more than all that one network answers."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles 0, 1, 2, ... whose answers differ by `BIAS`."""
    folder = tmp_path_factory.mktemp("stock")
    for number in range(6):
        write_small_bundle(folder / str(number), number * BIAS, with_engine=False)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is served; nothing yet."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


class Served:
    """A repository and the images it is asked about."""

    def __init__(self, source: Path, **options: Any) -> None:
        given = {"backend": "onnxruntime", "threads": 1, **options}
        self.failures: list[tuple[str, BaseException]] = []
        self.repository = Repository(
            ServeOptions(source, **given), lambda name, error: self.failures.append((name, error))
        )
        self.images = np.random.default_rng(5).standard_normal((8, 3, SIDE, SIDE), np.float32)
        session = open_session(small_model().SerializeToString(), threads=1)
        self.plain = run_session(session, self.images, chunk=8)[0]

    async def ask(self, name: str, rows: int = 1, version: str = "") -> tuple[int, str]:
        """Whose answer it was, and the version that is said to have given it."""
        model = self.repository.get(name, version)
        request = InferRequest({"input": self.images[:rows]}, rows)
        outputs, answered = await self.repository.infer(model, request, version)
        difference = outputs["logits"] - self.plain[:rows]
        assert difference.shape == (rows, CLASSES)
        number = round(float(difference[0, 0]) / BIAS)
        # Wholly one model's, in every row.
        np.testing.assert_allclose(difference, number * BIAS, rtol=0, atol=1e-3)
        return number, answered.facts.version

    def states(self) -> list[tuple[str, str, str]]:
        return [(entry.name, entry.version, entry.state) for entry in self.repository.index()]

    def reason(self) -> str:
        (reason,) = [e.reason for e in self.repository.index() if e.state == "UNAVAILABLE"]
        assert "\n" not in reason
        return reason


def engine_in_its_thread(model: ServedModel) -> Any:
    """What computes its batches, from now on in no other thread: a test may hold it up."""
    model.batcher._in_place = False
    assert len(model._engines) == 1
    return model._engines[0]


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await work

    asyncio.run(bounded())


def put(bundle: Path, place: Path) -> None:
    """As a careful operator does: a whole copy under a hidden name, then two renames."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new, old = place.parent / ".new", place.parent / ".old"
    shutil.copytree(bundle, new)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def test_all_bundles_of_a_folder_are_served_each_under_its_own_name(
    stock: Path, folder: Path
) -> None:
    for number, name in enumerate(("b", "a", "c.d-1")):
        put(stock / str(number), folder / name)
    (folder / "notes.txt").write_text("not a bundle")
    (folder / "empty").mkdir()

    async def work() -> None:
        served = Served(folder)
        assert not served.repository.ready
        await served.repository.look()
        assert served.repository.ready
        assert served.states() == [(n, "1", "READY") for n in ("a", "b", "c.d-1")]
        answers = [await served.ask(name, rows=3) for name in ("b", "a", "c.d-1")]
        assert answers == [(0, "1"), (1, "1"), (2, "1")]
        with pytest.raises(RequestError, match=r"unknown model 'notes\.txt'"):
            served.repository.get("notes.txt")
        with pytest.raises(RequestError, match="unknown model 'small'"):
            served.repository.get("small")  # three bundles call themselves so
        assert await served.repository.close(SECONDS)

    run(work())


def test_a_single_bundle_is_served_under_its_folders_name_and_the_name_in_it(stock: Path) -> None:
    async def work() -> None:
        served = Served(stock / "3")
        await served.repository.look()
        assert served.states() == [("3", "1", "READY")]
        assert (await served.ask("3"))[0] == 3
        assert (await served.ask("small"))[0] == 3
        assert await served.repository.close(SECONDS)

    run(work())


def test_before_the_first_look_is_over_no_name_is_said_to_be_unknown(
    stock: Path, folder: Path
) -> None:
    put(stock / "0", folder / "a")

    async def work() -> None:
        served = Served(folder)
        for name in ("a", "small", "nobody"):
            with pytest.raises(RequestError, match="being loaded") as refusal:
                served.repository.get(name)
            assert refusal.value.kind == REJECTED
            assert refusal.value.retry_after is not None
        await served.repository.look()
        assert await served.ask("small") == (0, "1")
        with pytest.raises(RequestError) as refusal:
            served.repository.get("nobody")
        assert refusal.value.kind == UNKNOWN
        assert await served.repository.close(SECONDS)

    run(work())


@pytest.mark.parametrize("way", ["swapped", "versions"])
def test_a_bundle_that_is_replaced_under_load_loses_no_request_and_mixes_no_answer(
    way: str, stock: Path, folder: Path
) -> None:
    def place(number: int) -> Path:
        return folder / "net" / str(number + 1) if way == "versions" else folder / "net"

    put(stock / "0", place(0))

    async def work() -> None:
        served, done = Served(folder), asyncio.Event()
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


def garbage_model(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"garbage" * 100)


def truncated_manifest(bundle: Path) -> None:
    content = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(content[: len(content) // 2])


def half_copied(bundle: Path) -> None:
    (bundle / "parity.safetensors").unlink()
    content = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(content[:1000])


def other_outputs(bundle: Path) -> None:
    """Every digest fits, and the network is another one than the samples are of."""
    content = small_model(0.01).SerializeToString()
    (bundle / "model.onnx").write_bytes(content)
    manifest = read_manifest(bundle)
    files = {**manifest.files, "model.onnx": FileEntry.of(content)}
    write_manifest(dataclasses.replace(manifest, files=files), bundle)


def no_samples(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    files = {name: e for name, e in manifest.files.items() if name != "parity.safetensors"}
    write_manifest(dataclasses.replace(manifest, files=files), bundle)


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

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
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
        assert await served.repository.close(SECONDS)

    run(work())


def test_what_failed_is_not_tried_again_before_it_changes(
    stock: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(stock / "1", folder / "net")
    garbage_model(folder / "net")

    async def work() -> None:
        served = Served(folder)
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

    async def work() -> None:
        nonlocal short_of_memory
        served = Served(folder)
        await served.repository.look()
        short_of_memory = False
        await served.repository.look()
        assert served.states() == [("a", "1", "READY"), ("b", "1", "UNAVAILABLE")]
        await served.repository.look(again=True)
        assert served.states() == [("a", "1", "READY"), ("b", "1", "READY")]
        await served.repository.look(again=True)
        assert loads == ["a", "b", "b"]
        assert await served.ask("b") == (1, "1")
        assert await served.repository.close(SECONDS)

    run(work())


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

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
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
        assert await served.repository.close(SECONDS)

    run(work())


def test_the_same_bundle_touched_is_loaded_again_and_counts_on(stock: Path, folder: Path) -> None:
    put(stock / "1", folder / "net")

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
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
        assert await served.repository.close(SECONDS)

    run(work())


def test_a_model_goes_when_its_bundle_has_been_away_for_two_looks(
    stock: Path, folder: Path
) -> None:
    put(stock / "1", folder / "net")
    put(stock / "2", folder / "other")

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
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
        assert await served.repository.close(SECONDS)

    run(work())


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

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
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
        assert await served.repository.close(SECONDS)

    run(work())


def test_a_folder_that_goes_altogether_takes_no_model_away(stock: Path, folder: Path) -> None:
    put(stock / "1", folder / "net")

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
        shutil.rmtree(folder)
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                await served.repository.look()
        assert (await served.ask("net"))[0] == 1
        assert await served.repository.close(SECONDS)

    run(work())


def test_names_that_are_not_plain_are_said_once_and_hidden_ones_ignored(
    stock: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("fine", "with space", "-dash", ".hidden", "ü", "x" * 129):
        shutil.copytree(stock / "0", folder / name)
    (folder / "without bundle").mkdir()
    shutil.copytree(stock / "0", folder / "line\nbreak")

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
        await served.repository.look()
        assert served.states() == [("fine", "1", "READY")]
        assert await served.repository.close(SECONDS)

    run(work())
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 5
    assert all("cannot be a model's name" in words and "\n" not in words for words in warned)


def test_bundles_beside_the_versions_of_a_model_are_said_once_to_be_none(
    stock: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for place in ("net/2", "net/v3", "net/.4", "only/01"):
        put(stock / "0", folder / place)
    (folder / "net" / "notes").mkdir()

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
        await served.repository.look()
        assert served.states() == [("net", "2", "READY")]
        assert await served.repository.close(SECONDS)

    run(work())
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [words.split("'")[1] for words in warned] == ["net/v3", "only/01"]
    assert all("its name is no version: rename it to 1, 2, ..." in words for words in warned)


def test_the_largest_version_is_served_and_asked_for_by_its_number(
    stock: Path, folder: Path
) -> None:
    for version, number in (("2", "1"), ("10", "2"), ("9", "3"), ("011", "4"), ("v12", "5")):
        put(stock / number, folder / "net" / version)
    (folder / "net" / "99").mkdir()  # nothing in it yet

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
        assert await served.ask("net") == (2, "10")
        assert await served.ask("net", version="10") == (2, "10")
        for version in ("2", "9", "011", "99", "x" * 1000):
            with pytest.raises(RequestError, match="has version 10, not") as unknown:
                await served.ask("net", version=version)
            assert unknown.value.kind == UNKNOWN
            assert len(str(unknown.value)) < 150
        assert await served.repository.close(SECONDS)

    run(work())


def test_at_the_start_an_older_version_serves_where_the_newest_does_not_hold(
    stock: Path, folder: Path
) -> None:
    for version in ("1", "2", "3", "4"):
        put(stock / version, folder / "net" / version)
    garbage_model(folder / "net" / "4")
    truncated_manifest(folder / "net" / "3")

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
        assert await served.ask("net") == (2, "2")
        assert served.states() == [("net", "2", "READY"), ("net", "4", "UNAVAILABLE")]
        assert served.repository.ready
        await served.repository.look()
        put(stock / "4", folder / "net" / "4")
        await served.repository.look()
        assert await served.ask("net") == (4, "4")
        assert served.states() == [("net", "4", "READY")]
        assert await served.repository.close(SECONDS)

    run(work())


def test_a_request_for_a_version_is_not_answered_by_its_successor(
    stock: Path, folder: Path
) -> None:
    put(stock / "1", folder / "net" / "1")

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
        model = served.repository.get("net", "1")
        put(stock / "2", folder / "net" / "2")
        await served.repository.look()  # while the request's body was still coming
        request = InferRequest({"input": served.images[:1]}, 1)
        with pytest.raises(RequestError, match="has version 2, not '1'"):
            await served.repository.infer(model, request, "1")
        _, answered = await served.repository.infer(model, request)
        assert answered.facts.version == "2"
        assert await served.repository.close(SECONDS)

    run(work())


def test_a_request_that_the_successor_does_not_take_is_told_so(
    stock: Path, folder: Path, tmp_path: Path
) -> None:
    put(stock / "1", folder / "net")
    smaller = write_small_bundle(tmp_path / "smaller", with_engine=False, batch=4)

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
        model = served.repository.get("net")
        put(smaller, folder / "net")
        await served.repository.look()
        few, many = (InferRequest({"input": served.images[:n]}, n) for n in (4, 5))
        outputs, _ = await served.repository.infer(model, few)
        np.testing.assert_allclose(outputs["logits"], served.plain[:4], atol=1e-3)
        with pytest.raises(RequestError, match="was just replaced") as refused:
            await served.repository.infer(model, many)
        assert (refused.value.kind, refused.value.retry_after) == (REJECTED, 1)
        assert await served.repository.close(SECONDS)

    run(work())


def test_links_are_followed_and_keep_their_own_names(stock: Path, folder: Path) -> None:
    releases = folder.parent / "releases"
    for number in ("1", "2"):
        shutil.copytree(stock / number, releases / number)
    (folder / "net").symlink_to(releases / "1")
    (folder / "nowhere").symlink_to(releases / "9")
    (folder / "round").symlink_to(folder / "round")
    alone = folder.parent / "current"
    alone.symlink_to(releases / "1")

    async def work() -> None:
        many, one = Served(folder), Served(alone)
        for served in (many, one):
            await served.repository.look()
        assert many.states() == [("net", "1", "READY")]
        assert one.states() == [("current", "1", "READY")]
        for link in (folder / "net", alone):
            new = link.parent / ".link"
            new.symlink_to(releases / "2")
            new.replace(link)
        for served, name in ((many, "net"), (one, "current")):
            await served.repository.look()
            assert (await served.ask(name))[0] == 2
            assert await served.repository.close(SECONDS)

    run(work())


def test_a_link_out_of_a_bundle_is_refused(stock: Path, folder: Path) -> None:
    put(stock / "1", folder / "net")
    outside = folder.parent / "model.onnx"
    (folder / "net" / "model.onnx").rename(outside)
    (folder / "net" / "model.onnx").symlink_to(outside)

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
        assert "cannot be read (a link out of the folder)" in served.reason()
        assert await served.repository.close(SECONDS)

    run(work())


def test_an_engine_that_cannot_run_here_is_refused_or_its_onnx_file_served(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_small_bundle(folder / "net")

    async def work() -> None:
        strict, lenient = (
            Served(folder, backend="auto"),
            Served(folder, backend="auto", fallback=True),
        )
        for served in (strict, lenient):
            await served.repository.look()
        assert "the engine of net cannot be served here" in strict.reason()
        assert strict.reason().endswith("; or serve its ONNX file: --fallback")
        assert "--device cpu" not in strict.reason(), "engines run on no CPU"
        assert (await lenient.ask("net"))[0] == 0
        assert lenient.repository.get("net").facts.platform == "onnxruntime_onnx"
        for served in (strict, lenient):
            assert await served.repository.close(SECONDS)

    run(work())
    (warned,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warned.startswith("net: its engine cannot run here (")
    assert warned.endswith("its ONNX file is served")


def test_a_damaged_engine_is_refused_even_where_its_onnx_file_would_be_served(
    folder: Path,
) -> None:
    write_small_bundle(folder / "net")
    (folder / "net" / ENGINE).write_bytes(b"another program")

    async def work() -> None:
        served = Served(folder, backend="auto", fallback=True)
        await served.repository.look()
        assert ENGINE in served.reason()
        assert "the manifest says 512" in served.reason()
        assert await served.repository.close(SECONDS)

    run(work())


def test_with_a_key_only_signed_bundles_are_served(stock: Path, folder: Path) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from polarprune_export.signatures import load_signing_key, sign_manifest

    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder.parent / "key.pem", folder.parent / "public.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, form))
    for name, number in (("signed", "1"), ("unsigned", "2"), ("changed", "3")):
        shutil.copytree(stock / number, folder / name)
        if name != "unsigned":
            sign_manifest(folder / name, load_signing_key(private))
    other_outputs(folder / "changed")

    async def work() -> None:
        served = Served(folder, public_key=public)
        await served.repository.look()
        assert (await served.ask("signed"))[0] == 1
        reasons = {e.name: e.reason for e in served.repository.index() if e.reason}
        assert "has no signature that can be read" in reasons["unsigned"]
        assert "is not the signature" in reasons["changed"]
        assert await served.repository.close(SECONDS)

    run(work())


def test_closing_answers_what_was_taken_also_by_models_that_were_replaced(
    stock: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stock / "1", folder / "net")
    gate, running = threading.Event(), threading.Event()

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
        old = served.repository.get("net")
        engine = engine_in_its_thread(old)
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
        served = Served(stock)
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
        served = Served(folder)
        await served.repository.look()
        engine = engine_in_its_thread(served.repository.get("net"))
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
        served = Served(folder)
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
        serving, loading = Served(folder), Served(folder)
        for served in (serving, loading):
            await served.repository.look()
        monkeypatch.setattr(engine_in_its_thread(serving.repository.get("net")), "run", sticky)
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


def test_metrics_can_be_parsed_and_add_up(stock: Path, folder: Path) -> None:
    put(stock / "1", folder / "a")
    put(stock / "2", folder / "b")

    async def work() -> None:
        served = Served(folder)
        await served.repository.look()
        await asyncio.gather(*(served.ask("a", rows) for rows in (1, 2, 3, 4, 5)))
        await served.ask("b", 8)
        for kind in (REJECTED, UNKNOWN):
            served.repository.get("a").counters.failed(kind)
        text = render_metrics(served.repository).decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        samples = [s for f in families.values() for s in f.samples]
        names = {line.split("{")[0] for line in text.splitlines()}
        assert set(COUNTERS) <= names, "without _total, which this parser adds"

        def of(name: str, **labels: str) -> list[float]:
            wanted, name = {"version": "1", **labels}.items(), name + "_total" * (name in COUNTERS)
            return [s.value for s in samples if s.name == name and wanted <= s.labels.items()]

        assert all(families[name].type == "counter" for name in COUNTERS)
        assert families[LATENCY].type == "histogram"
        assert of("nv_inference_request_success", model="a") == [5]
        assert of("nv_inference_count", model="a") == [15]
        assert of("nv_inference_count", model="b") == [8]
        assert of("nv_inference_exec_count", model="b") == [1]
        failures = {
            s.labels["reason"]: s.value
            for s in samples
            if s.name == "nv_inference_request_failure_total" and s.labels["model"] == "a"
        }
        assert failures == {"REJECTED": 1, "CANCELED": 0, "BACKEND": 0, "OTHER": 1}
        (whole,) = of("nv_inference_request_duration_us", model="a")
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        total = sum(of(f"nv_inference_{part}_duration_us", model="a")[0] for part in parts)
        assert total == pytest.approx(whole, abs=len(parts))
        buckets = of(f"{LATENCY}_bucket", model="a")
        assert buckets == sorted(buckets)
        assert [buckets[-1]] == of(f"{LATENCY}_count", model="a") == [5]
        assert of(f"{LATENCY}_sum", model="a")[0] == pytest.approx(whole / 1e3, abs=0.001)
        assert of("nv_inference_pending_request_count", model="b") == [0]
        assert of("polarprune_model_state", model="b", state="READY") == [1]
        assert [s.value for s in samples if s.name == "polarprune_ready"] == [1]
        assert await served.repository.close(SECONDS)

    run(work())


def test_what_is_no_folder_cannot_be_looked_into(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("file", "absent"):
        with pytest.raises(OSError, match="directory"):
            find_bundles(tmp_path / name)
    assert find_bundles(tmp_path).bundles == {}


def test_strangers_are_not_told_where_bundles_lie(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "hidden" / "bundles" / "small")
    (bundle / "model.onnx").write_bytes(b"garbage")

    async def look() -> tuple[str, str]:
        repository = Repository(ServeOptions(bundle.parent, backend="onnxruntime"), fail)
        await repository.look()
        (entry,) = repository.index()
        with pytest.raises(RequestError) as refused:
            repository.get("small")
        await repository.close(5)
        return entry.reason, str(refused.value)

    reason, words = asyncio.run(look())
    assert "model.onnx" in reason
    for told in (reason, words):
        assert "hidden" not in told


def fail(model: str, error: BaseException) -> None:
    raise AssertionError(f"{model} failed: {error}")
