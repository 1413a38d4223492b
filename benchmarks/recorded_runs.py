"""Training runs as records: what each gave, how it came about, where it was made."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.records import describe_machine
from polarprune.runs.run_folder import RunFolder
from polarprune.runs.training import Progress, TrainConfig, train

_SHOWN_EVERY = 200  # steps

Record = dict[str, Any]


def recorded_run(config: TrainConfig, progress: Progress | None = None) -> Record:
    """Train, or go on with it; what is recorded of it, without a path of this machine.

    Args:
        progress: as train takes it; None prints a line now and then to stderr.
    """
    result = train(config, progress or _printed(config.out.name)).as_dict()
    folder = RunFolder(config.out)
    return {
        "result": {key: value for key, value in result.items() if key != "run"},
        "config": {
            **folder.config,
            "data": Path(config.data).name,
            "weights": None if config.weights is None else Path(config.weights).name,
            "teacher": None if config.teacher is None else Path(config.teacher).name,
        },
        "machine": describe_machine(),
        "versions": folder.document["versions"],
        "git": folder.document["git"],
        "threads": folder.document["threads"],
        "bf16": folder.document["bf16"],
        "metrics": folder.metrics(),
        "cuts": [_short(cut) for cut in folder.cuts()],
    }


def record_missing(
    runs: Iterable[tuple[str, int]],
    make: Callable[[str, int], Record],
    say: Callable[[Record], str],
    records: Path,
    *,
    commit: bool = False,
) -> None:
    """Make the runs that are not recorded yet, one file each.

    Args:
        runs: (row, seed) of each, in the order in which they are made.
        say: the figures of a record in a few words.
        commit: make a git commit of every new record.
    """
    records.mkdir(parents=True, exist_ok=True)
    for row, seed in runs:
        path = records / f"{row}-{seed}.json"
        if path.exists():
            continue
        record = make(row, seed)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{path.stem}: {say(record)}", flush=True)
        if commit:
            _commit(path, f"Record {row}, seed {seed}: {say(record)}")


def top1_of(record: Record) -> str:
    """The headline of a record, in words."""
    return f"{100 * record['result']['top1']:.2f} %"


def read_results(records: Path, rows: Iterable[str]) -> dict[str, list[Record]]:
    """What the runs of each row gave, by their seeds; rows without any are left out."""
    found = {
        row: [
            json.loads(path.read_text())["result"] for path in sorted(records.glob(f"{row}-?.json"))
        ]
        for row in rows
    }
    return {row: results for row, results in found.items() if results}


def mean_of(results: list[Record], key: str) -> float:
    """Over runs of one row."""
    return sum(float(result[key]) for result in results) / len(results)


def each_of(results: list[Record], key: str) -> str:
    """The mean over runs of one row, and each run, in per cent."""
    listed = ", ".join(f"{100 * result[key]:.2f}" for result in results)
    return f"{100 * mean_of(results, key):.2f} ({listed})"


def write_table(path: Path, columns: list[str], rows: Iterable[list[str]]) -> None:
    """Write a Markdown table and print it; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in [columns, rule, *rows])
    path.write_text(text)
    print(text)


def _printed(name: str) -> Progress:
    def show(text: str, step: int, steps: int, _: dict[str, float]) -> None:
        if step % _SHOWN_EVERY == 0:
            print(f"{name} {text} {step}/{steps}", file=sys.stderr, flush=True)

    return show


def _commit(path: Path, message: str) -> None:
    where = ["git", "-C", str(path.parent)]
    for command in (["add", path.name], ["commit", "-q", "-m", message, "--", path.name]):
        done = subprocess.run([*where, *command], check=False)
        if done.returncode:
            print(f"not committed: {path.name}", file=sys.stderr)
            return


def _short(cut: Record) -> Record:
    return {key: value for key, value in cut.items() if key != "certificate"}
