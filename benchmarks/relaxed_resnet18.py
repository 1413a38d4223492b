"""How far down does relaxation take a narrow ResNet-18 without loss, in one pass?

    export OMP_NUM_THREADS=1
    python -m benchmarks.relaxed_resnet18 run --data TREE --work FOLDER
    python -m benchmarks.relaxed_resnet18 report
    python -m benchmarks.relaxed_resnet18 run --width 64 --records FOLDER ...    # on a GPU

ResNet-18 with a quarter of its channels (16 to 128) and a stem for images of 32 x 32, on CIFAR-10
with the recipe of `pareto`: 12 epochs, test images used once, on the last epoch. Bounds on MACs and
bounds on parameters, against dense runs of the same network. A run that was stopped goes on, a
recorded one is not repeated. A rehearsal: run --data digits --epochs 1 --seeds 1 --records FOLDER.

The authors' notes, width 64 and a search of several stages: 91.04 % at 13.2 % of the parameters and
24.9 % of the MACs, dense 91.58 % (papers.md, B.7).
"""

from pathlib import Path
from typing import Annotated, Any

import timm.models.resnet
import typer
from torch import nn

from benchmarks.pareto.report import difference, in_words
from benchmarks.pareto.settings import BATCH_SIZE, EPOCHS
from benchmarks.recorded_runs import (
    Record,
    each_of,
    mean_of,
    read_results,
    record_missing,
    recorded_run,
    top1_of,
    write_table,
)
from polarprune.runs.run_folder import RUN_FILE
from polarprune.runs.training import TrainConfig

RESULTS = Path(__file__).parent / "results" / "relaxed_resnet18"
# Round by round, what is asked first is what decides most.
ROWS: dict[str, dict[str, Any]] = {
    "dense": {"target": 1.0},
    "macs-0.5": {"target": 0.5},
    "macs-0.25": {"target": 0.25},
    "params-0.25": {"target_params": 0.25},
    "params-0.13": {"target_params": 0.13},
    "macs-0.7": {"target": 0.7},
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Records = Annotated[Path, typer.Option(help="Folder of the records.")]


def resnet18_width16(num_classes: int = 10) -> nn.Module:
    """A quarter of the channels: 16, 32, 64 and 128."""
    return _resnet18(16, num_classes)


def resnet18_width64(num_classes: int = 10) -> nn.Module:
    """The real width: 64, 128, 256 and 512 channels."""
    return _resnet18(64, num_classes)


def _resnet18(width: int, num_classes: int) -> nn.Module:
    """ResNet-18 of timm; no pooling after a 3 x 3 stem."""
    block = timm.models.resnet.BasicBlock
    channels = (width, 2 * width, 4 * width, 8 * width)
    net = timm.models.resnet.ResNet(
        block, (2, 2, 2, 2), num_classes, stem_width=width, channels=channels
    )
    net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()  # type: ignore[assignment]
    return net


for _build in (resnet18_width16, resnet18_width64):
    _build.input_size = (3, 32, 32)  # type: ignore[attr-defined]


@app.command()
def run(
    data: Annotated[str, typer.Option(help="A class-folder tree, or digits for a rehearsal.")],
    work: Annotated[Path, typer.Option(help="Where run folders are kept.")],
    only: Annotated[str, typer.Option(help="Rows, with commas.")] = ",".join(ROWS),
    seeds: Annotated[int, typer.Option(help="Runs a row.")] = 2,
    first_seed: Annotated[int, typer.Option(help="Others are left to another process.")] = 0,
    epochs: Annotated[int, typer.Option(help="Of each run.")] = EPOCHS,
    width: Annotated[int, typer.Option(help="Channels of the first stage: 16 or 64.")] = 16,
    records: Records = RESULTS,
    commit: Annotated[bool, typer.Option(help="Commit every record.")] = False,
) -> None:
    """Make the runs that are not recorded yet."""
    if width not in (16, 64):
        raise SystemExit(f"error: --width is {width}; 16 and 64 are built here")
    unknown = set(only.split(",")) - set(ROWS)
    if unknown:
        raise SystemExit(f"error: there is no row {', '.join(sorted(unknown))}")

    def make(row: str, seed: int) -> Record:
        out = work / f"resnet18-{row}-{seed}"  # one folder of runs a width
        config = TrainConfig(
            model=f"benchmarks.relaxed_resnet18:resnet18_width{width}", data=data, out=out,
            method="relaxation", epochs=epochs, batch_size=BATCH_SIZE, seed=seed,
            resume=(out / RUN_FILE).exists(), **ROWS[row],
        )  # fmt: skip
        return {"name": row, "seed": seed, **recorded_run(config)}

    runs = [(row, seed) for seed in range(first_seed, seeds) for row in only.split(",")]
    record_missing(runs, make, top1_of, records, commit=commit)


@app.command()
def report(records: Records = RESULTS) -> None:
    """Write the table beside the records."""
    found = read_results(records, ROWS)
    dense = _top1(found.get("dense", []))
    columns = ["row", "n", "top-1, % (each run)", "kept MACs", "kept parameters"]
    columns += ["blocks removed", "training MACs", "minus dense, points"]
    rows = [
        [
            row,
            str(len(results)),
            each_of(results, "top1"),
            f"{mean_of(results, 'macs_ratio'):.3f}",
            f"{mean_of(results, 'params') / mean_of(results, 'dense_params'):.3f}",
            ", ".join(str(result["blocks_removed"]) for result in results),
            f"{mean_of(results, 'train_macs_ratio'):.2f}",
            "" if row == "dense" else in_words(difference(_top1(results), dense)),
        ]
        for row, results in found.items()
    ]
    write_table(records.with_suffix(".md"), columns, rows)


def _top1(results: list[Record]) -> list[float]:
    return [100 * result["top1"] for result in results]


if __name__ == "__main__":
    app()
