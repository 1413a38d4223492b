"""ResNet-56 on CIFAR-10: from published weights on a CPU, and from the start on a GPU.

    python -m benchmarks.resnet56_cifar10 from-weights --data TREE --weights FILE --work FOLDER
    python -m benchmarks.resnet56_cifar10 part --data TREE --work FOLDER --minutes 8.5
    python -m benchmarks.resnet56_cifar10 part --data digits --work FOLDER --minutes 1 --epochs 2

TREE is a class-folder tree of CIFAR-10. `from-weights`: one pass of 6 epochs at half of the MACs.
`part`: 200 epochs each at 0.5, dense and 0.35, as far as the minutes go; call it again with the
same work folder, wherever that was carried, until it says that all is recorded. A part that ends
amid an epoch goes on from the last checkpoint. Every record names its device.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.recorded_runs import recorded_run
from polarprune.runs.run_folder import RUN_FILE
from polarprune.runs.training import TrainConfig

RESULTS = Path(__file__).parent / "results" / "resnet56"
# In the order of what is wanted first.
TARGETS = {"ours-0.5": 0.5, "dense": 1.0, "ours-0.35": 0.35}
_CHECKPOINT_EVERY = 100  # steps: seconds of work on a GPU
# On the test images, by the authors: what a pass would have to beat (reference: papers D).
TO_BEAT = {
    "DepGraph, several stages": (93.77, 0.47),
    "DepGraph, several stages, deeper": (93.64, 0.39),
    "polarization, three stages": (93.83, 0.53),
    "GDP": (93.97, 0.47),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Data = Annotated[str, typer.Option(help="A class-folder tree, or digits for a rehearsal.")]
Work = Annotated[Path, typer.Option(help="Where run folders are kept.")]


class TimeIsUp(Exception):
    """Raised between two steps; the run goes on from its last checkpoint."""


def run_until(config: TrainConfig, deadline: float) -> dict[str, Any]:
    """Train or go on; what is recorded.

    Args:
        deadline: on the monotonic clock.

    Raises:
        TimeIsUp: it came first.
    """

    def watch(text: str, step: int, steps: int, figures: dict[str, float]) -> None:
        if time.monotonic() > deadline:
            raise TimeIsUp(f"{config.out.name}: {text}, step {step} of {steps}")

    return recorded_run(config, watch)


def _write(records: Path, name: str, record: dict[str, Any]) -> None:
    records.mkdir(parents=True, exist_ok=True)
    (records / f"{name}.json").write_text(json.dumps({"name": name, **record}, indent=1) + "\n")


def _line(record: dict[str, Any]) -> str:
    found = record["result"]
    machine = record["machine"]
    return (
        f"{100 * found['top1']:.2f} % at {found['macs_ratio']:.3f} of the MACs, for "
        f"{found['train_macs_ratio']:.3f} of the training MACs, {found['seconds']:.0f} s on "
        f"{machine['gpu'] or machine['cpu']}"
    )


@app.command()
def from_weights(
    data: Data,
    work: Work,
    weights: Annotated[Path, typer.Option(help="Of a trained ResNet-56, safetensors.")],
    epochs: Annotated[int, typer.Option(help="Of the one pass.")] = 6,
    lr: Annotated[float, typer.Option(help="The peak of the one cycle.")] = 0.05,
    records: Annotated[Path, typer.Option(help="Folder of the records.")] = RESULTS,
) -> None:
    """One pass at half of the MACs that starts from a trained network; one seed."""
    name = f"from-weights-lr-{lr:g}"
    config = TrainConfig(
        model="resnet56", data=data, out=work / name, weights=weights, target=0.5,
        epochs=epochs, lr=lr, resume=(work / name / RUN_FILE).exists(),
    )  # fmt: skip
    record = run_until(config, deadline=float("inf"))
    _write(records, name, record)
    print(f"{name}:", _line(record))


@app.command()
def part(
    data: Data,
    work: Work,
    minutes: Annotated[float, typer.Option(help="After which it stops.")] = 8.5,
    epochs: Annotated[int, typer.Option(help="Of each run.")] = 200,
    model: Annotated[str, typer.Option(help="Another one is a rehearsal.")] = "resnet56",
    records: Annotated[Path | None, typer.Option(help="Default: WORK/records.")] = None,
) -> None:
    """Go on with the long runs for some minutes."""
    deadline = time.monotonic() + 60 * minutes
    into = records or work / "records"
    for name, target in TARGETS.items():
        path = into / f"{name}.json"
        if path.exists():
            print(f"{name}:", _line(json.loads(path.read_text())), flush=True)
            continue
        out = work / name
        config = TrainConfig(
            model=model, data=data, out=out, target=target, epochs=epochs, seed=0,
            resume=(out / RUN_FILE).exists(), checkpoint_every=_CHECKPOINT_EVERY,
        )  # fmt: skip
        try:
            record = run_until(config, deadline)
        except TimeIsUp as stop:
            print(f"time is up; {stop}; call it again with the same --work")
            return
        _write(into, name, record)
        print(f"{name}:", _line(record), flush=True)
    print("all is recorded; to beat:")
    for what, (top1, kept) in TO_BEAT.items():
        print(f"  {top1:.2f} % at {kept:.2f} of the MACs: {what}")


if __name__ == "__main__":
    app()
