"""A record that is written line by line and can be gone on with: one part, one device.

The first line says what it is about and where; each call adds a line on its options and versions,
and then what it found, one line as soon as it is known. A last line that was cut off is dropped.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import describe_machine
from polarprune.errors import BackendUnavailable, ConfigError
from polarprune_deploy.environment import describe_environment
from polarprune_deploy.gpu_state import gpu_monitor

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
SCHEMA = 2
Line = dict[str, Any]


class RecordFile:
    """Lines in memory and, where there is a path, in a file."""

    def __init__(
        self, path: Path | None, head: Mapping[str, Any], continued: Path | None = None
    ) -> None:
        """Go on with a record, or begin one.

        Args:
            path: what is written; None for a rehearsal that nobody keeps.
            head: part, device, and all that the lines must share to be read together.
            continued: a record whose lines are taken over; None goes on with `path` if it exists.

        Raises:
            ConfigError: the record is of another part or device, or was made with other options.
        """
        self.path = path
        self.head = {"kind": "head", "schema": SCHEMA, **head}
        source = continued or path
        self._lines: list[Line] = []
        if source is not None and (continued is not None or source.exists()):
            self._lines = _read(source)
            self._check(source)
        if not self._lines:
            self._lines = [self.head]
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(map(_text, self._lines)))
            os.replace(partial, path)

    def _check(self, source: Path) -> None:
        found = self._lines[0] if self._lines else self.head
        for key, value in self.head.items():
            if found.get(key) != value:
                raise ConfigError(
                    f"{source} cannot be gone on with: its {key} is {found.get(key)!r}, and this "
                    f"call's is {value!r}; name another --record, or begin a new one"
                )

    def add(self, kind: str, **values: Any) -> None:
        """One line, on the disk before this returns."""
        line = {"kind": kind, **values}
        self._lines.append(line)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(_text(line))
                file.flush()
                os.fsync(file.fileno())

    def all(self, kind: str) -> Iterator[Line]:
        """Lines of one kind, oldest first."""
        return (line for line in self._lines if line["kind"] == kind)


def _text(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _read(source: Path) -> list[Line]:
    try:
        text = source.read_text()
    except OSError as error:
        raise ConfigError(f"{source} cannot be read ({error.strerror}); name a record") from None
    lines = []
    for number, each in enumerate(text.splitlines()):
        try:
            lines.append(json.loads(each))
        except ValueError:
            if number < text.count("\n"):
                raise ConfigError(f"line {number + 1} of {source} is no JSON") from None
    return lines


def record_path(name: str, record: Path | None, dry_run: bool) -> Path | None:
    """Where a part's record goes: as asked, into $OUT, or among the results unless a rehearsal."""
    folder = os.environ.get("OUT")
    if record is not None:
        return record
    if folder:
        return Path(folder) / f"{name}.jsonl"
    return None if dry_run else RESULTS / f"{name}.jsonl"


def device_of(dry_run: bool) -> tuple[str, str]:
    """("cuda" or "cpu", what it is called).

    Raises:
        BackendUnavailable: it is no rehearsal, and no GPU is here.
    """
    if dry_run:
        return "cpu", f"CPU REHEARSAL: {describe_machine()['cpu']}"
    if not torch.cuda.is_available():
        raise BackendUnavailable("no CUDA device is here; rehearse with --dry-run")
    return "cuda", torch.cuda.get_device_name()


def describe_call(options: Mapping[str, Any]) -> Line:
    """Of the line that a call adds: its options, the versions, and the GPU as it is found."""
    cudnn: Any = torch.backends.cudnn
    monitor = gpu_monitor("cuda" if torch.cuda.is_available() else "cpu")
    gpu = None if monitor is None else monitor.report(monitor.look(), ()).as_dict()
    return {
        "options": {key: str(v) if isinstance(v, Path) else v for key, v in options.items()},
        "machine": {**describe_environment(), **describe_machine()},
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
        "gpu": gpu,
    }
