"""Folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polarprune.errors import PolarpruneError, Refused


@contextmanager
def whole_folder(place: Path, workshop: Path | None = None) -> Iterator[Path]:
    """A folder to fill, moved to its place if the block succeeds.

    Args:
        place: absent, or an empty folder.
        workshop: the folder to fill it in, on the same file system; None for the one that `place`
            is in.

    Raises:
        Refused: something is in that place.
        PolarpruneError: it cannot be written.
    """
    if place.is_symlink() or (place.exists() and not is_empty_folder(place)):
        state = "not empty" if place.is_dir() else "no folder"
        raise Refused(f"{place} is there already and is {state}; give another folder")
    with scratch_folder(place, workshop) as scratch:
        yield scratch
        made = not place.parent.exists()
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.rename(place)  # onto an empty folder too, in one step
        except OSError:
            if made:
                place.parent.rmdir()
            raise


@contextmanager
def scratch_folder(place: Path, workshop: Path | None) -> Iterator[Path]:
    """A folder in which to prepare what will be moved to a place; gone afterwards.

    Raises:
        PolarpruneError: in the place of any error of the system.
    """
    where = Path(os.path.abspath(place))
    scratch = (workshop or where.parent) / f".{where.name}.{os.getpid()}.partial"
    try:
        scratch.mkdir(parents=True)
        yield scratch
    except OSError as error:
        raise PolarpruneError(
            f"{place} cannot be written ({error.strerror}); nothing was left of it"
        ) from None
    except PolarpruneError as error:  # it may name a folder that is gone in a moment
        error.args = tuple(str(word).replace(str(scratch), str(place)) for word in error.args)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_outside(place: Path, bundle: Path) -> None:
    """Refuse a place in the bundle that is read: nothing is added to what was certified.

    Raises:
        Refused: it is in there.
    """
    if bundle.resolve() in place.resolve().parents:
        raise Refused(f"{place} is in the bundle {bundle}; give a folder outside of it")


def is_empty_folder(place: Path) -> bool:
    """Whether it is a folder with nothing in it."""
    return place.is_dir() and not any(place.iterdir())


def choose_workshop(repository: Path) -> Path:
    """Where to prepare what will be moved into a folder that a server may be watching.

    Beside it, so that the server never sees half of it; where that is another file system, from
    which nothing can be moved in one step, or cannot be written, in it.
    """
    repository = Path(os.path.abspath(repository))
    beside = repository.parent
    if not repository.exists():
        return beside
    same = beside.stat().st_dev == repository.stat().st_dev
    return beside if same and os.access(beside, os.W_OK) else repository
