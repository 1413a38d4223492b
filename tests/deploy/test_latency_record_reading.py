"""Records read back: what was concluded, or one error where a record is not what was written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polarprune.errors import RunFolderError
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.latency import compare_latency
from polarprune_deploy.latency_record_reading import read_latency
from polarprune_deploy.latency_records import write_record

Make = Callable[..., Any]
Lines = list[dict[str, Any]]


@pytest.fixture
def comparisons(make_device: Make, make_runner: Make) -> list[Comparison]:
    """Two candidates against one network, on a virtual clock."""
    device = make_device(7)
    runners = [make_runner(device, cost) for cost in (6.0, 3.0, 12.0)]
    return compare_latency(runners, batch=4, clock=device.clock, stolen=lambda: 0.0)


@pytest.fixture
def record(comparisons: list[Comparison], tmp_path: Path) -> Path:
    path = tmp_path / "bench.jsonl"
    machine = {"cpu": "A CPU", "usable_cpus": 2, "packages": {"onnx": "1.2", "torch": None}}
    write_record(path, environment=machine, request={}, comparisons=comparisons)
    return path


def test_what_was_written_is_read(record: Path, comparisons: list[Comparison]) -> None:
    found = read_latency(record)
    assert found is not None
    assert (found.cpu, found.platform, found.usable_cpus) == ("A CPU", None, 2)
    assert found.packages == {"onnx": "1.2", "torch": None}
    assert len(found.rows) == len(comparisons) == 2
    for row, made in zip(found.rows, comparisons, strict=True):
        for name in ("backend", "device", "precision", "batch", "against", "candidate", "label"):
            assert getattr(row, name) == getattr(made, name)
        assert (row.against_ms, row.ms) == (made.against_ms, made.ms)
        assert (row.verdict, row.reason) == (made.verdict, made.reason)
        assert (row.confidence, row.rounds) == (made.effect.confidence, made.effect.rounds)
        for ratio, said in ((row.effect, made.effect), (row.control, made.control)):
            assert (ratio.speedup, ratio.ci_low, ratio.ci_high) == (
                said.speedup,
                said.ci_low,
                said.ci_high,
            )


def test_without_a_record_there_is_none(tmp_path: Path) -> None:
    assert read_latency(tmp_path / "bench.jsonl") is None


def test_kinds_of_lines_that_are_not_known_are_left_out(record: Path) -> None:
    before = read_latency(record)
    with record.open("a") as file:
        file.write('{"kind": "clock", "mhz": 1}\n')
    assert read_latency(record) == before


def of_kind(lines: Lines, kind: str) -> dict[str, Any]:
    return next(line for line in lines if line["kind"] == kind)


SPOILED: dict[str, tuple[Callable[[Lines], Any], str]] = {
    "cut off": (lambda lines: lines.pop(), "the samples are not those of 40 rounds"),
    "no comparison": (lambda lines: lines.__delitem__(slice(1, None)), "holds no comparison"),
    "empty": (lambda lines: lines.clear(), "holds no comparison"),
    "another schema": (lambda lines: lines[0].update(schema=2), "line 1: schema 2, and 1 is read"),
    "no head": (lambda lines: lines.pop(0), "line 1: a record has one line of environment"),
    "two heads": (lambda lines: lines.append(lines[0]), "a record has one line of environment"),
    "a nicer figure": (
        lambda lines: of_kind(lines, "comparison").update(speedup=2.9),
        r"line 2: speedup is 2\.9000, its samples give ",
    ),
    "a nicer interval": (
        lambda lines: of_kind(lines, "comparison").update(ci_low=1.99999),
        r"line 2: ci_low is 2\.0000, its samples give ",
    ),
    "a nicer control": (
        lambda lines: of_kind(lines, "comparison")["control"].update(speedup=1.2),
        r"line 2: speedup is 1\.2000, its samples give ",
    ),
    "a verdict of one's own": (
        lambda lines: of_kind(lines, "comparison").update(verdict="<b>"),
        "line 2: the verdict is none of faster, slower",
    ),
    "a word for a number": (
        lambda lines: of_kind(lines, "comparison").update(ms="fast"),
        r"line 2: it.ms is of the wrong kind \(str\)",
    ),
    "a field too few": (
        lambda lines: of_kind(lines, "comparison").pop("rounds"),
        "line 2: it has no 'rounds'",
    ),
    "no time": (lambda lines: of_kind(lines, "sample").update(elapsed_ns=0), "positive"),
    "no repetitions": (
        lambda lines: of_kind(lines, "sample").update(repetitions=0),
        "without repetitions",
    ),
    "a sample of nothing": (
        lambda lines: of_kind(lines, "sample").update(comparison=7),
        "a sample of no comparison",
    ),
    "a comparison twice": (lambda lines: lines.insert(1, lines[1]), "comparison 0 is there twice"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_record_is_one_error(record: Path, how: str) -> None:
    spoil, message = SPOILED[how]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    spoil(lines)
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunFolderError, match=message) as raised:
        read_latency(record)
    assert "\n" not in str(raised.value)
    assert str(record) in str(raised.value)


def test_half_a_line_and_no_number_are_refused(record: Path) -> None:
    whole = record.read_text()
    record.write_text(whole[:-20])
    with pytest.raises(RunFolderError, match=r"bench.jsonl, line \d+: "):
        read_latency(record)
    record.write_text(whole.replace('"stolen_share": 0.0', '"stolen_share": NaN'))
    with pytest.raises(RunFolderError, match="line 2: NaN is no number of JSON"):
        read_latency(record)
