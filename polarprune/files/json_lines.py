"""Files of JSON lines that somebody else may have written: each line an object, or one error."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polarprune.errors import RunFolderError
from polarprune.files.strict_json import parse_strict
from polarprune.files.typed_json import build_known

LARGEST_LINE = 1 << 26
"""Bytes: the openness of a million units in one line, with room."""


def read_json_lines(path: Path, *, may_be_cut_off: bool = False) -> Iterator[tuple[int, Any]]:
    """(line number from 1, what it says) of each line; nothing where there is no file.

    Args:
        may_be_cut_off: leave out a last line without an end, as a program leaves it that was killed
            while it wrote.

    Raises:
        RunFolderError: it is no file, or a line is not strict JSON.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise RunFolderError(f"{path} is not a file; move it away")
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LARGEST_LINE + 1), b""), 1):
            try:
                value = parse_strict(line, LARGEST_LINE)
            except ValueError as error:
                if may_be_cut_off and not line.endswith(b"\n") and len(line) <= LARGEST_LINE:
                    return
                raise broken_line(path, number, error) from error
            yield number, value


def typed_line(kind: Any, value: Any, path: Path, number: int) -> Any:
    """What a line says as a dataclass; what the class does not know is left out.

    Raises:
        RunFolderError: a field is missing or of another kind.
    """
    try:
        return build_known(kind, value)
    except ValueError as error:
        raise broken_line(path, number, error) from error


def broken_line(path: Path, number: int, reason: object) -> RunFolderError:
    """The error for a line that cannot be used."""
    return RunFolderError(
        f"{path}, line {number}: {reason}; put the file right, or move it away to go without it"
    )
