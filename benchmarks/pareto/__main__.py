"""Accuracy against kept MACs: the whole study, one record a run, resumable across days.

    export OMP_NUM_THREADS=2
    python -m benchmarks.pareto run --data TREE --work FOLDER             # all that is missing
    python -m benchmarks.pareto run --data TREE --work FOLDER --only ours,dense --seeds 2 --commit
    python -m benchmarks.pareto report                                    # table and picture

TREE is a class-folder tree of CIFAR-10. A run that was stopped goes on from its last checkpoint, a
recorded one is not repeated; --commit makes a git commit of every new record. Seeds go round by
round, so that all rows have their first run before any has its second. A rehearsal of minutes:
run --data digits --work FOLDER --epochs 1 --seeds 1 --records FOLDER/records.

The test split is evaluated for metrics.jsonl after every epoch and decides nothing; the figure of a
run is that of its last epoch.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

import benchmarks.pareto.methods  # noqa: F401  registers the control methods
from benchmarks.pareto.report import write_report
from benchmarks.pareto.settings import BATCH_SIZE, EPOCHS, NETWORK, SETTINGS, Setting
from benchmarks.recorded_runs import Record, record_missing, recorded_run, top1_of
from benchmarks.records import describe_machine
from benchmarks.torch_pruning_rival import prune_half_way
from polarprune.runs.run_folder import RUN_FILE
from polarprune.runs.training import TrainConfig

RECORDS = Path(__file__).parents[1] / "results" / "pareto"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def run_once(setting: Setting, seed: int, data: str, work: Path, epochs: int) -> Record:
    """Train one row with one seed, or go on with it; what is recorded of it.

    Args:
        epochs: of the recipe; a row with its own number has it in proportion.
    """
    out = work / f"{setting.name}-{seed}"
    options: dict[str, Any] = {
        "model": NETWORK, "batch_size": BATCH_SIZE, "target": 0.5, **setting.options
    }  # fmt: skip
    options["epochs"] = max(1, round(options.get("epochs", EPOCHS) * epochs / EPOCHS))
    if setting.rival is not None:
        return prune_half_way(setting.rival, out, data=data, seed=seed, **options)
    config = TrainConfig(**options, data=data, out=out, seed=seed, resume=(out / RUN_FILE).exists())
    return recorded_run(config)


@app.command()
def run(
    data: Annotated[str, typer.Option(help="A class-folder tree, or digits for a rehearsal.")],
    work: Annotated[Path, typer.Option(help="Where run folders are kept between sessions.")],
    only: Annotated[str, typer.Option(help="Names of rows, with commas.")] = "",
    seeds: Annotated[int, typer.Option(help="At most so many runs a row.")] = 5,
    epochs: Annotated[int, typer.Option(help="Of the recipe.")] = EPOCHS,
    records: Annotated[Path, typer.Option(help="Folder of the records.")] = RECORDS,
    commit: Annotated[bool, typer.Option(help="Commit every record.")] = False,
) -> None:
    """Make the runs that are not recorded yet."""
    rows = {setting.name: setting for setting in SETTINGS}
    names = only.split(",") if only else list(rows)
    unknown = set(names) - set(rows)
    if unknown:
        raise SystemExit(f"error: there is no row {', '.join(sorted(unknown))}")

    def make(name: str, seed: int) -> Record:
        return {
            "setting": name,
            "what": rows[name].what,
            "group": rows[name].group,
            "seed": seed,
            "machine": describe_machine(),
            **run_once(rows[name], seed, data, work, epochs),
        }

    runs = [
        (name, seed)
        for seed in range(seeds)
        for name, setting in rows.items()
        if name in names and seed < setting.seeds
    ]
    record_missing(runs, make, top1_of, records, commit=commit)


@app.command()
def report(
    records: Annotated[Path, typer.Option(help="Folder of the records.")] = RECORDS,
) -> None:
    """Write table and picture of what is recorded beside the records."""
    print(write_report(records))


if __name__ == "__main__":
    app()
