"""What lies in the folder that is served: which models, which versions, and whether they changed.

    bundle/manifest.json                one model, named as its folder, version 1
    folder/NAME/manifest.json           many of them
    folder/NAME/VERSION/manifest.json   versions 1, 2, ...; the largest is served

Hidden folders are somebody's unfinished work.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from polarprune.manifest import is_bundle

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Found:
    """One bundle on disk.

    Attributes:
        name, version: under which it is served.
        folder: where it lies.
        stamp: changes when one of its files does.
    """

    name: str
    version: str
    folder: Path
    stamp: tuple[tuple[str, int, int, int], ...]


def find_bundles(source: Path) -> dict[str, Found]:
    """The newest version of each model, by name. A folder that vanishes meanwhile is not there."""
    if is_bundle(source):
        name = source.resolve().name
        return {name: _found(name, "1", source)} if PLAIN_NAME.fullmatch(name) else {}
    models = {}
    for folder in _folders(source):
        if not PLAIN_NAME.fullmatch(folder.name):
            continue
        if is_bundle(folder):
            models[folder.name] = _found(folder.name, "1", folder)
            continue
        versions = [f for f in _folders(folder) if VERSION.fullmatch(f.name) and is_bundle(f)]
        if versions:
            newest = max(versions, key=lambda f: int(f.name))
            models[folder.name] = _found(folder.name, newest.name, newest)
    return models


def _folders(source: Path) -> list[Path]:
    try:
        return sorted(path for path in source.iterdir() if path.is_dir())
    except OSError:
        return []


def _found(name: str, version: str, folder: Path) -> Found:
    stamp = []
    try:
        for path in sorted(folder.iterdir()):
            status = path.stat()
            stamp.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns))
    except OSError:
        pass
    return Found(name, version, folder, tuple(stamp))
