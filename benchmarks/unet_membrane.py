"""A U-Net on electron microscopy images of membranes: dense, and at 50, 20 and 10 % of its MACs.

    python -m benchmarks.unet_membrane run --data MEMBRANE --work FOLDER
    python -m benchmarks.unet_membrane picture --data MEMBRANE --work FOLDER
    python -m benchmarks.unet_membrane report

MEMBRANE holds image/* and label/*: 30 images of 512 x 512, every fifth held out, never looked at
until the end of a run. Trained on crops of 256, tested whole. A run that was stopped goes on, a
recorded one is not repeated. A rehearsal: run ... --model unet-d2-w4 --epochs 1 --records FOLDER.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.recorded_runs import (
    Record,
    each_of,
    mean_of,
    read_results,
    record_missing,
    recorded_run,
    write_table,
)
from polarprune.datasets import load_dataset
from polarprune.runs.run_folder import RUN_FILE, RunFolder
from polarprune.runs.training import TrainConfig

RESULTS = Path(__file__).parent / "results" / "unet"
TARGETS = {"dense": 1.0, "half": 0.5, "fifth": 0.2, "tenth": 0.1}
_SHOWN = 0  # of the held-out images

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Data = Annotated[Path, typer.Option(help="A folder with image/* and label/*.")]
Work = Annotated[Path, typer.Option(help="Where run folders are kept.")]
Records = Annotated[Path, typer.Option(help="Folder of the records.")]


@app.command()
def run(
    data: Data,
    work: Work,
    model: Annotated[str, typer.Option(help="A U-Net.")] = "unet-d4-w16",
    method: Annotated[str, typer.Option(help="Who decides.")] = "relaxation",
    epochs: Annotated[int, typer.Option(help="Of each run.")] = 120,
    only: Annotated[str, typer.Option(help="Rows, with commas.")] = ",".join(TARGETS),
    seeds: Annotated[int, typer.Option(help="Runs a row.")] = 2,
    records: Records = RESULTS,
    commit: Annotated[bool, typer.Option(help="Commit every record.")] = False,
) -> None:
    """Make the runs that are not recorded yet."""

    def make(row: str, seed: int) -> Record:
        out = work / f"{row}-{seed}"
        config = TrainConfig(
            model=model, task="segmentation", data=str(data), out=out, image_size=512,
            crop_size=256, epochs=epochs, batch_size=4, lr=0.1, target=TARGETS[row],
            method=method, seed=seed, workers=1, resume=(out / RUN_FILE).exists(),
        )  # fmt: skip
        return {"name": row, "seed": seed, **recorded_run(config)}

    runs = [(row, seed) for seed in range(seeds) for row in only.split(",")]
    record_missing(runs, make, _figures, records, commit=commit)


def _figures(record: dict[str, Any]) -> str:
    found = record["result"]
    return (
        f"mIoU {100 * found['miou']:.2f} %, Dice {100 * found['dice']:.2f} % at "
        f"{found['macs_ratio']:.3f} of the MACs, {found['params']:,} parameters"
    )


@app.command()
def picture(data: Data, work: Work, records: Records = RESULTS) -> None:
    """Draw a held-out image, its labels, and what each network of seed 0 makes of it."""
    import matplotlib.pyplot as plt

    shown: dict[str, Any] = {}
    for row in TARGETS:
        folder = RunFolder(work / f"{row}-0")
        split = load_dataset(
            data, image_size=512, mean_std=(folder.mean, folder.std), task="segmentation", workers=0
        ).test
        images, labels = next(split.batches(_SHOWN + 1, shuffle_seed=None, augment=False))
        if not shown:
            shown["image"] = split.raw(_SHOWN + 1)[0][_SHOWN]
            shown["labels"] = labels[_SHOWN]
        with torch.no_grad():
            scores = folder.pruned_network().eval()(images)
        figures = json.loads((records / f"{row}-0.json").read_text())["result"]
        title = f"{row}: {figures['macs_ratio']:.0%} of the MACs\nDice {figures['dice']:.3f}"
        shown[title] = scores[_SHOWN].argmax(0)
    figure, axes = plt.subplots(1, len(shown), figsize=(3 * len(shown), 3.4))
    for axis, (title, pixels) in zip(axes, shown.items(), strict=True):
        axis.imshow(pixels, cmap="gray")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(records.with_suffix(".png"), dpi=90, bbox_inches="tight")


@app.command()
def report(records: Records = RESULTS) -> None:
    """Write the table beside the records."""
    columns = ["row", "n", "Dice, % (each run)", "mIoU, % (each run)", "kept MACs", "parameters"]
    rows = [
        [
            row,
            str(len(results)),
            each_of(results, "dice"),
            each_of(results, "miou"),
            f"{mean_of(results, 'macs_ratio'):.3f}",
            f"{mean_of(results, 'params'):,.0f}",
            f"{mean_of(results, 'train_macs_ratio'):.2f}",
        ]
        for row, results in read_results(records, TARGETS).items()
    ]
    write_table(records.with_suffix(".md"), [*columns, "training MACs"], rows)


if __name__ == "__main__":
    app()
