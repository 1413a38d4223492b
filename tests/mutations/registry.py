"""Kinds of damage, registered by name, and what all of them use."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from polarprune.manifest import Manifest
from polarprune_export.engine_description import fingerprint_of
from tests.small_bundles import ENGINE

FILES = ("model.onnx", "parity.safetensors", ENGINE)
MANIFEST = "manifest.json"
MODEL = "model.onnx"
SAMPLES = "parity.safetensors"

Apply = Callable[[Random, Path], None]


@dataclass(frozen=True)
class Mutation:
    """One kind of damage."""

    name: str
    apply: Apply
    expected: str


PLAIN: list[Mutation] = []
FORGED: list[Mutation] = []


def plain(expected: str = "refuse") -> Callable[[Apply], Apply]:
    """Registers damage to files as they lie there."""

    def register(apply: Apply) -> Apply:
        PLAIN.append(Mutation(apply.__name__, apply, expected))
        return apply

    return register


def forged(expected: str = "refuse") -> Callable[[Apply], Apply]:
    """Registers damage to files after which sizes, digests and fingerprint are made to fit."""

    def register(apply: Apply) -> Apply:
        def forge(random: Random, folder: Path) -> None:
            apply(random, folder)
            redigest(folder)

        FORGED.append(Mutation(apply.__name__, forge, expected))
        return apply

    return register


def redigest(folder: Path) -> None:
    """Makes sizes, digests and the engine's fingerprint fit, as far as there is a place."""
    document = read_document(folder)
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
        return
    for name, entry in document["files"].items():
        path = folder / name
        if isinstance(entry, dict) and name in FILES and path.is_file():
            content = path.read_bytes()
            entry["size"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    try:
        manifest = Manifest.from_json(json.dumps(document))
        assert manifest.engine is not None
        digest = manifest.files[MODEL].sha256
        document["engine"]["fingerprint"] = fingerprint_of(manifest.engine, digest)
    except Exception:  # no manifest any more: there is nothing that could fit
        pass
    write_document(folder, document)


def read_document(folder: Path) -> Any:
    return json.loads((folder / MANIFEST).read_text())


def write_document(folder: Path, document: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps(document, indent=2))


def flip_bits(random: Random, path: Path, count: int) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(count):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


# --- damage to files as they lie there ---------------------------------------------------------
