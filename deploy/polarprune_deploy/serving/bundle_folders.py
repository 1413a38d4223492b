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

from polarprune.errors import quote
from polarprune.manifest import MANIFEST_NAME

PLAIN_NAME = re.compile(r"(?!stats$)[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
"""`/v2/models/stats` is the protocol's route for the statistics of all models."""
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
        misplaced: those in a model's folder whose names are no versions.
        nested: those that lie in another bundle.
    """

    bundles: dict[str, tuple[Found, ...]]
    unreadable: dict[str, str]
    misnamed: tuple[str, ...]
    misplaced: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()

    @property
    def passed_over(self) -> list[str]:
        """Bundles that are not served: why not, and what to do; a line each."""
        reasons = (
            (self.misnamed, "its name cannot be a model's; rename it to up to 128 letters, digits, "
             "'.', '-' and '_', but not to stats"),
            (self.misplaced, "its name is no version; rename it to 1, 2, ..."),
            (self.nested, "lies in another bundle; give each its own folder, as NAME/1 and NAME/2"),
        )  # fmt: skip
        return [
            f"the folder {quote(name)} holds a bundle, and {why}"
            for names, why in reasons
            for name in names
        ]


def find_bundles(source: Path) -> Seen:
    """Look. A folder that vanishes meanwhile is not there.

    Raises:
        OSError: the folder itself is not there or cannot be read.
    """
    if _is_bundle(source):
        # The name as it was given: behind a link it would change with what the link shows.
        name = Path(os.path.abspath(source)).name
        if PLAIN_NAME.fullmatch(name):
            inner = tuple(os.path.join(name, each) for each in _bundles_in(source))
            return Seen({name: (_found(name, "1", source),)}, {}, (), nested=inner)
        return Seen({}, {}, (name,))
    bundles: dict[str, tuple[Found, ...]] = {}
    unreadable: dict[str, str] = {}
    misnamed: list[str] = []
    misplaced: list[str] = []
    nested: list[str] = []
    for name in sorted(os.listdir(source)):
        if name.startswith("."):
            continue
        try:
            versions, others = _versions(name, source / name)
            passed_over = nested if _is_one(versions, source / name) else misplaced
        except OSError as error:
            unreadable[name] = error.strerror or type(error).__name__
            continue
        passed_over += [os.path.join(name, other) for other in others]
        if versions and PLAIN_NAME.fullmatch(name):
            bundles[name] = versions
        elif versions:
            misnamed.append(name)
    return Seen(bundles, unreadable, tuple(misnamed), tuple(misplaced), tuple(nested))


def _versions(name: str, folder: Path) -> tuple[tuple[Found, ...], list[str]]:
    """Those of one model, the newest first, and folders in it with bundles that are none.

    Raises:
        OSError: nobody can tell.
    """
    if _is_bundle(folder):
        return (_found(name, "1", folder),), _bundles_in(folder)
    try:
        entries = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return (), []
    numbers = [int(entry) for entry in entries if VERSION.fullmatch(entry)]
    newest_first = [str(number) for number in sorted(numbers, reverse=True)]
    versions = tuple(_found(name, n, folder / n) for n in newest_first if _is_bundle(folder / n))
    return versions, [name for name in _bundles_in(folder) if not VERSION.fullmatch(name)]


def _bundles_in(folder: Path) -> list[str]:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [name for name in names if os.path.isfile(folder / name / MANIFEST_NAME)]


def _is_one(versions: tuple[Found, ...], folder: Path) -> bool:
    """Whether the folder itself is the bundle, not one of those in it."""
    return bool(versions) and versions[0].folder == folder


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
