"""A repository in this process, asked whose answers it gives; and bundles that do not hold."""

import asyncio
import dataclasses
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from polarprune.manifest import FileEntry, read_manifest, write_manifest
from polarprune_deploy.serving.infer_requests import InferRequest
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.serve_options import ServeOptions
from polarprune_export.onnx_session import open_session, run_session
from tests.small_bundles import CLASSES, SIDE, small_model

SECONDS = 30

BIAS = 100.0
"""Between two models' answers to one image; far more than all that one network answers."""


class Asked:
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


async def bounded(work: Awaitable[None]) -> None:
    async with asyncio.timeout(SECONDS):
        await work


def run(work: Awaitable[None]) -> None:
    """Within the time that a test may take."""
    asyncio.run(bounded(work))


def serve(source: Path, work: Callable[[Asked], Awaitable[None]], **options: Any) -> None:
    """Work with a repository of what there is; in the end it must answer all and close."""

    async def whole() -> None:
        served = Asked(source, **options)
        await served.repository.look()
        await work(served)
        assert await served.repository.close(SECONDS)

    run(whole())


def put(bundle: Path, place: Path) -> None:
    """As a careful operator does: a whole copy under a hidden name, then two renames."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new, old = place.parent / ".new", place.parent / ".old"
    shutil.copytree(bundle, new)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


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
