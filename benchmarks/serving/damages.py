"""What may happen to a bundle on disk while it is served, and how it is made good again."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.serving.pair_of_bundles import Pair

MODEL_FILE, SAMPLES, MANIFEST = "model.onnx", "parity.safetensors", "manifest.json"
SPARSE_BYTES = 64 << 30


@dataclass(frozen=True)
class Damage:
    """One thing that happens.

    Attributes:
        what: in words.
        apply: does it to the bundle's folder, which holds A.
        told: "index": the old one goes on, and the index says why; "log": it goes on, and the log
            says why; "gone": there is no bundle any more, and its model goes.
        heal: undoes it in place; None: a fresh copy of A takes the folder's place.
        label: of the bundle that serves once it is healed.
    """

    what: str
    apply: Callable[[Path, Pair], None]
    told: Literal["index", "log", "gone"] = "index"
    heal: Callable[[Path], None] | None = None
    label: str = "A"


def all_damages() -> list[Damage]:
    """In the order in which they are tried."""
    return [
        Damage("model is garbage", lambda f, p: _write(f / MODEL_FILE, _garbage(f / MODEL_FILE))),
        Damage("model of another bundle", lambda f, p: _copy(p.folders["B"], f, MODEL_FILE)),
        Damage("model cut short", _cut),
        Damage("one bit of the model turned", _turn_bit),
        Damage("model empty", lambda f, p: _write(f / MODEL_FILE, b"")),
        Damage("model of 64 GiB without content", _make_sparse),
        Damage("model missing", lambda f, p: (f / MODEL_FILE).unlink()),
        Damage("model is a folder", _make_folder),
        Damage("model is a pipe", _make_pipe),
        Damage("model is a link to another bundle's", _make_link),
        Damage("manifest of another bundle", lambda f, p: _copy(p.folders["B"], f, MANIFEST)),
        Damage("manifest is garbage", lambda f, p: _write(f / MANIFEST, _garbage(f / MANIFEST))),
        Damage("manifest cut short", _cut_manifest),
        Damage("manifest empty", lambda f, p: _write(f / MANIFEST, b"")),
        Damage("samples of another bundle", lambda f, p: _copy(p.folders["B"], f, SAMPLES)),
        Damage("model and manifest of another bundle", _mix),
        Damage("new bundle, locked model", _lock_new, heal=_unlock, label="B"),
        Damage("new bundle, locked folder", _lock_folder, told="log", heal=_unlock, label="B"),
        Damage("manifest missing", lambda f, p: (f / MANIFEST).unlink(), told="gone"),
        Damage("folder removed", lambda f, p: shutil.rmtree(f), told="gone"),
        Damage("folder replaced by a file", _make_file, told="gone"),
    ]


def restore(folder: Path, pair: Pair) -> None:
    """Put a fresh A in the folder's place."""
    coming = folder.with_name(".coming")
    pair.copy("A", coming)
    if folder.is_dir():
        folder.rename(folder.with_name(".damaged"))
    else:
        folder.unlink(missing_ok=True)
    coming.rename(folder)
    shutil.rmtree(folder.with_name(".damaged"), ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _garbage(path: Path) -> bytes:
    return np.random.default_rng(0).bytes(path.stat().st_size)


def _copy(source: Path, folder: Path, name: str) -> None:
    shutil.copyfile(source / name, folder / name)


def _cut(folder: Path, _: Pair) -> None:
    path = folder / MODEL_FILE
    os.truncate(path, path.stat().st_size // 2)


def _cut_manifest(folder: Path, _: Pair) -> None:
    path = folder / MANIFEST
    os.truncate(path, path.stat().st_size // 2)


def _turn_bit(folder: Path, _: Pair) -> None:
    path = folder / MODEL_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _make_sparse(folder: Path, _: Pair) -> None:
    os.truncate(folder / MODEL_FILE, SPARSE_BYTES)


def _make_folder(folder: Path, _: Pair) -> None:
    (folder / MODEL_FILE).unlink()
    (folder / MODEL_FILE).mkdir()


def _make_pipe(folder: Path, _: Pair) -> None:
    (folder / MODEL_FILE).unlink()
    os.mkfifo(folder / MODEL_FILE)


def _make_link(folder: Path, pair: Pair) -> None:
    (folder / MODEL_FILE).unlink()
    (folder / MODEL_FILE).symlink_to(pair.folders["A"] / MODEL_FILE)


def _mix(folder: Path, pair: Pair) -> None:
    for name in (MODEL_FILE, MANIFEST):
        _copy(pair.folders["B"], folder, name)


def _lock_new(folder: Path, pair: Pair) -> None:
    coming = folder.with_name(".coming")
    pair.copy("B", coming)
    (coming / MODEL_FILE).chmod(0)
    folder.rename(folder.with_name(".old"))
    coming.rename(folder)
    shutil.rmtree(folder.with_name(".old"))


def _lock_folder(folder: Path, pair: Pair) -> None:
    coming = folder.with_name(".coming")
    pair.copy("B", coming)
    coming.chmod(0)
    folder.rename(folder.with_name(".old"))
    coming.rename(folder)
    shutil.rmtree(folder.with_name(".old"))


def _unlock(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / MODEL_FILE).chmod(0o644)


def _make_file(folder: Path, _: Pair) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"no folder")
