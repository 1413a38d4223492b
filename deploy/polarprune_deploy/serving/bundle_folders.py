"""What lies in the folder that is served: which models, which versions, and whether they changed.

    bundle/manifest.json                one model, named as its folder, version 1
    folder/NAME/manifest.json           many of them
    folder/NAME/VERSION/manifest.json   versions 1, 2, ...; the largest is served

Hidden folders are somebody's unfinished work. What cannot be read is not the same as what is not
there: a disk that fails for a moment must not take models away.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from polarprune.manifest import MANIFEST_NAME

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


@dataclass(frozen=True)
class Seen:
    """One look at the folder.

    Attributes:
        bundles: of each model all versions, the newest first.
        unreadable: names of what may be models, with the reason why nobody can tell.
        misnamed: folders with bundles whose names cannot be those of models.
    """

    bundles: dict[str, tuple[Found, ...]]
    unreadable: dict[str, str]
    misnamed: tuple[str, ...]


def find_bundles(source: Path) -> Seen:
    """Look. A folder that vanishes meanwhile is not there.

    Raises:
        OSError: the folder itself is not there or cannot be read.
    """
    if _is_bundle(source):
        # The name as it was given: behind a link it would change with what the link shows.
        name = Path(os.path.abspath(source)).name
        if PLAIN_NAME.fullmatch(name):
            return Seen({name: (_found(name, "1", source),)}, {}, ())
        return Seen({}, {}, (name,))
    bundles: dict[str, tuple[Found, ...]] = {}
    unreadable: dict[str, str] = {}
    misnamed: list[str] = []
    for name in sorted(os.listdir(source)):
        if name.startswith("."):
            continue
        try:
            versions = _versions(name, source / name)
        except OSError as error:
            unreadable[name] = error.strerror or type(error).__name__
            continue
        if versions and PLAIN_NAME.fullmatch(name):
            bundles[name] = versions
        elif versions:
            misnamed.append(name)
    return Seen(bundles, unreadable, tuple(misnamed))


def _versions(name: str, folder: Path) -> tuple[Found, ...]:
    """Those of one model, the newest first.

    Raises:
        OSError: nobody can tell.
    """
    if _is_bundle(folder):
        return (_found(name, "1", folder),)
    try:
        numbers = [int(entry) for entry in os.listdir(folder) if VERSION.fullmatch(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    newest_first = [str(number) for number in sorted(numbers, reverse=True)]
    return tuple(_found(name, n, folder / n) for n in newest_first if _is_bundle(folder / n))


def _is_bundle(folder: Path) -> bool:
    """As `manifest.is_bundle`, but a disk's error is no answer.

    Raises:
        OSError: nobody can tell.
    """
    try:
        return stat.S_ISREG((folder / MANIFEST_NAME).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _found(name: str, version: str, folder: Path) -> Found:
    try:
        stamp = tuple(_file_stamp(folder, file) for file in sorted(os.listdir(folder)))
    except FileNotFoundError:  # it is being replaced: the next look finds another stamp
        stamp = ()
    return Found(name, version, folder, stamp)


def _file_stamp(folder: Path, file: str) -> tuple[str, int, int, int]:
    try:
        status = (folder / file).stat()
    except FileNotFoundError:  # a link to nothing
        return file, 0, 0, 0
    # Not when its content was changed last: who may read it is changed later than that.
    return file, status.st_ino, status.st_size, status.st_ctime_ns
