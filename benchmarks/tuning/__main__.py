"""How the defaults of one pass were found: candidates on a part of the training images.

    export OMP_NUM_THREADS=1
    python -m benchmarks.tuning run --data TREE --work FOLDER --only dense,narrowed
    python -m benchmarks.tuning report

TREE is a class-folder tree made by `benchmarks.held_out_tree`: its test folder holds 5,000 of the
training images of CIFAR-10, so that the real test images decide nothing. Recorded candidates are
not repeated. Losers stay in the table.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.pareto.__main__ import run_once
from benchmarks.pareto.settings import EPOCHS
from benchmarks.recorded_runs import Record, record_missing, top1_of
from benchmarks.records import describe_machine
from benchmarks.tuning.candidates import CANDIDATES
from polarprune.onepass import OnePass
from polarprune.runs import training

RECORDS = Path(__file__).parents[1] / "results" / "tuning"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def run(
    data: Annotated[str, typer.Option(help="A class-folder tree.")],
    work: Annotated[Path, typer.Option(help="Where run folders are kept.")],
    only: Annotated[str, typer.Option(help="Names of candidates, with commas.")],
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0",
    records: Annotated[Path, typer.Option(help="Folder of the records.")] = RECORDS,
) -> None:
    """Make the runs that are not recorded yet."""
    names = only.split(",")
    unknown = set(names) - set(CANDIDATES)
    if unknown:
        sys.exit(f"error: there is no candidate {', '.join(sorted(unknown))}")
    if len(names) > 1 and any(CANDIDATES[name].changes for name in names):
        sys.exit("error: a candidate that changes the program must be the only one")

    def make(name: str, seed: int) -> Record:
        candidate = CANDIDATES[name]
        for change in candidate.changes:
            change()
        # What is tried is given to OnePass where `train` makes one.
        training.OnePass = functools.partial(OnePass, **candidate.one_pass)  # type: ignore
        return {
            "candidate": name, "what": candidate.what, "seed": seed,
            "machine": describe_machine(),
            **run_once(candidate.setting(name), seed, data, work, EPOCHS),
        }  # fmt: skip

    runs = [(name, int(seed)) for seed in seeds.split(",") for name in names]
    record_missing(runs, make, top1_of, records)


def _agreement(runs: list[dict[str, Any]]) -> str:
    found = [run["result"]["agreement"] for run in runs if "agreement" in run["result"]]
    return f"{sum(found) / len(found):.3f}" if found else "-"


def table(records: Path) -> str:
    """One line a candidate, the best first.

    The training loss is a mean over all images and not over 5,000: less noisy, and silent about how
    well a network generalises.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(records.glob("*.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["candidate"], []).append(record)

    # A row with another network has MACs of its own; all are compared with the whole one.
    dense = max(run["result"]["dense_macs"] for runs in found.values() for run in runs)

    def mean(of: list[dict[str, Any]], key: str) -> float:
        return sum(float(record["result"][key]) for record in of) / len(of)

    lines = [
        "| candidate | what | n | top-1 | last epoch's training loss | kept MACs | training MACs | "
        "agreement |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, runs in sorted(found.items(), key=lambda item: -mean(item[1], "top1")):
        each = ", ".join(f"{100 * record['result']['top1']:.2f}" for record in runs)
        loss = sum(record["metrics"][-1]["loss"] for record in runs) / len(runs)
        lines.append(
            f"| {name} | {runs[0]['what']} | {len(runs)} | {each} | {loss:.4f} | "
            f"{mean(runs, 'macs') / dense:.3f} | "
            f"{mean(runs, 'train_macs_ratio') * mean(runs, 'dense_macs') / dense:.3f} | "
            f"{_agreement(runs)} |"
        )
    lines += [
        "",
        "Top-1 on 5,000 images: two networks that err on 13 % and differ on a tenth of the images "
        "are told apart to about 0.45 points only (one standard deviation, sqrt(0.1 / 5000)).",
    ]
    return "\n".join(lines)


@app.command()
def report(
    records: Annotated[Path, typer.Option(help="Folder of the records.")] = RECORDS,
) -> None:
    """Write the table beside the records."""
    if not any(records.glob("*.json")):
        sys.exit(f"error: no record in {records}")
    text = table(records)
    (records / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    app()
