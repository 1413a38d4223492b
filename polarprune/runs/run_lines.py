"""What a run folder's files say, line by line, with every value of its kind.

A run that was made by an older polarprune lacks some of it, and a newer one says more.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarprune.files.json_lines import broken_line, read_json_lines, typed_line
from polarprune.runs.run_folder import CUTS_FILE, METRICS_FILE, OPENNESS_FILE


@dataclass(frozen=True)
class EpochLine:
    """One line of metrics.jsonl; `macs` are those of one image then, gates included."""

    epoch: int
    step: int
    loss: float | None = None
    macs: int | None = None
    train_macs_ratio: float | None = None
    seconds: float | None = None
    top1: float | None = None
    miou: float | None = None
    dice: float | None = None


@dataclass(frozen=True)
class CutCertificate:
    """What certificates.certify recorded of a cut."""

    inputs: str
    n: int
    tolerance: float
    max_rel_error: float
    max_abs_error: float
    top1_agreement: float | None
    passed: bool


@dataclass(frozen=True)
class CutLine:
    """One line of cuts.jsonl (cut_records.CutRecord says what is what)."""

    step: int
    macs_before: int
    macs_after: int
    sites: dict[str, int] | None = None
    units: int | None = None
    blocks_removed: int | None = None
    agreement: float | None = None
    site_agreement: dict[str, float] | None = None
    max_rel_error: float | None = None
    certificate: CutCertificate | None = None
    output_agreement: float | None = None
    top1_before: float | None = None
    top1_after: float | None = None
    miou_before: float | None = None
    miou_after: float | None = None


@dataclass(frozen=True)
class OpennessLine:
    """One line of openness.jsonl: after `step` steps, how likely each unit of a site is open."""

    step: int
    open: dict[str, list[float]]


def read_epochs(run: Path) -> tuple[EpochLine, ...]:
    """The epochs of a run; none where it has written none yet.

    Raises:
        RunFolderError: a line is broken.
    """
    return _read(run / METRICS_FILE, EpochLine)


def read_cuts(run: Path) -> tuple[CutLine, ...]:
    """The cuts of a run, in the order they were made.

    Raises:
        RunFolderError: a line is broken.
    """
    return _read(run / CUTS_FILE, CutLine)


def read_openness(run: Path) -> tuple[OpennessLine, ...]:
    """The openness of a run's gates over time.

    Raises:
        RunFolderError: a line is broken, or speaks of other gates than the first.
    """
    path = run / OPENNESS_FILE
    found: list[OpennessLine] = []
    for number, value in read_json_lines(path, may_be_cut_off=True):
        sites = value.get("open") if isinstance(value, dict) else None
        if not isinstance(sites, dict) or type(value.get("step")) is not int:
            raise broken_line(path, number, "it has no step, or no sites under 'open'")
        # Not typed_line: there may be millions of these.
        for values in sites.values():
            if not isinstance(values, list) or not all(map(_is_share, values)):
                raise broken_line(path, number, "openness is not numbers from 0 to 1")
        line = OpennessLine(value["step"], sites)
        if found and _units(line) != _units(found[0]):
            raise broken_line(path, number, "it speaks of other gates than the first line")
        found.append(line)
    return tuple(found)


def _read(path: Path, kind: Any) -> tuple[Any, ...]:
    lines = read_json_lines(path, may_be_cut_off=True)
    return tuple(typed_line(kind, value, path, number) for number, value in lines)


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


def _units(line: OpennessLine) -> dict[str, int]:
    return {name: len(values) for name, values in line.open.items()}
