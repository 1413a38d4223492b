"""A latency record read back for people: its conclusions, held to the samples beside them."""

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from polarprune.errors import ConfigError, RunFolderError, quote
from polarprune.files.json_lines import broken_line, read_json_lines, typed_line
from polarprune.reports.measured_latency import LatencyRow, MeasuredLatency, Ratio
from polarprune_deploy.latency_records import SCHEMA
from polarprune_deploy.statistics import Verdict, paired_ratio

_Times = dict[int, dict[str, dict[int, float]]]  # nanoseconds a run: comparison, network, round
_TOLERANCE = 1e-6  # of what is computed again from the same samples


@dataclass(frozen=True)
class _Environment:
    cpu: str | None = None
    platform: str | None = None
    usable_cpus: int | None = None
    packages: dict[str, str | None] | None = None


@dataclass(frozen=True)
class _Conclusion:
    comparison: int
    label: str
    backend: str
    device: str
    precision: str
    batch: int
    against_ms: float
    ms: float
    speedup: float
    ci_low: float
    ci_high: float
    verdict: str
    control: Ratio
    against: str
    candidate: str
    confidence: float
    control_confidence: float
    rounds: int
    reason: str


@dataclass(frozen=True)
class _Sample:
    comparison: int
    round: int
    network: str
    repetitions: int
    elapsed_ns: int


def read_latency(path: Path) -> MeasuredLatency | None:
    """What a record written by `bench --record` concludes; None where there is no file.

    Raises:
        RunFolderError: it is no such record, it is cut off, or its ratios are not those of its
            samples.
    """
    environment: _Environment | None = None
    conclusions: dict[int, tuple[int, _Conclusion]] = {}
    times: _Times = defaultdict(lambda: defaultdict(dict))
    for number, line in read_json_lines(path):
        kind = line.get("kind") if isinstance(line, dict) else None
        if (kind == "environment") != (number == 1):
            raise broken_line(path, number, "a record has one line of environment, its first")
        if kind == "environment":
            environment = _read_environment(line, path, number)
        elif kind == "comparison":
            found = typed_line(_Conclusion, line, path, number)
            _check(found, path, number)
            if found.comparison in conclusions:
                raise broken_line(path, number, f"comparison {found.comparison} is there twice")
            conclusions[found.comparison] = number, found
        elif kind == "sample":
            sample = typed_line(_Sample, line, path, number)
            if sample.repetitions < 1 or sample.comparison not in conclusions:
                raise broken_line(path, number, "a sample of no comparison, or without repetitions")
            taken = times[sample.comparison][sample.network]
            taken[sample.round] = sample.elapsed_ns / sample.repetitions
    if environment is None and not path.exists():
        return None
    if environment is None or not conclusions:
        raise RunFolderError(f"{path} holds no comparison; move it away, or measure again")
    for place, (number, found) in conclusions.items():
        _hold_to_samples(found, times[place], path, number)
    return MeasuredLatency(
        environment.cpu,
        environment.platform,
        environment.usable_cpus,
        environment.packages or {},
        tuple(_row(found) for _, found in conclusions.values()),
    )


def _read_environment(line: dict[str, Any], path: Path, number: int) -> _Environment:
    if line.get("schema") != SCHEMA:
        words = f"schema {quote(line.get('schema'))}, and {SCHEMA} is read"
        raise broken_line(path, number, words)
    found: _Environment = typed_line(_Environment, line, path, number)
    return found


def _check(found: _Conclusion, path: Path, number: int) -> None:
    if min(found.against_ms, found.ms) <= 0 or min(found.batch, found.rounds) < 1:
        raise broken_line(path, number, "a time, a batch or a number of rounds below its least")
    if found.verdict not in get_args(Verdict):
        raise broken_line(path, number, f"the verdict is none of {', '.join(get_args(Verdict))}")


def _hold_to_samples(
    found: _Conclusion, times: dict[str, dict[int, float]], path: Path, number: int
) -> None:
    """Compute both ratios and their intervals again."""
    # The candidate is "candidate", or one of "candidate_0", "candidate_1", ... beside its control.
    names = [name for name in times if name.startswith("candidate")]
    candidate = times[names[0]] if len(names) == 1 else {}
    control = times.get(names[0].replace("candidate", "control"), {}) if names else {}
    against = times.get("against", {})
    rounds = range(found.rounds)
    if not all(side.keys() == set(rounds) for side in (against, candidate, control)):
        raise broken_line(
            path, number, f"the samples are not those of {found.rounds} rounds of three networks"
        )
    for said, first, second, confidence in (
        (_effect(found), against, candidate, found.confidence),
        (found.control, candidate, control, found.control_confidence),
    ):
        try:
            again = paired_ratio(
                [first[place] for place in rounds],
                [second[place] for place in rounds],
                confidence=confidence,
            ).as_json()
        except ConfigError as error:
            raise broken_line(path, number, error) from error
        for name, value in again.items():
            if not math.isclose(getattr(said, name), value, rel_tol=_TOLERANCE):
                words = f"{name} is {getattr(said, name):.4f}, its samples give {value:.4f}"
                raise broken_line(path, number, words)


def _effect(found: _Conclusion) -> Ratio:
    return Ratio(found.speedup, found.ci_low, found.ci_high)


def _row(found: _Conclusion) -> LatencyRow:
    names = [field.name for field in dataclasses.fields(LatencyRow) if field.name != "effect"]
    shared: dict[str, Any] = {name: getattr(found, name) for name in names}
    return LatencyRow(**shared, effect=_effect(found))
