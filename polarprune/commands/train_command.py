"""`polarprune train`: one pass from a dense network to a small one."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from polarprune.commands import train_options as opt
from polarprune.commands.errors import noting_when_stopped
from polarprune.commands.options import AsJson, Classes, Data, ImageSize, Model, Weights
from polarprune.figure_words import cut_figures, sentence, task_figures
from polarprune.terminal import Terminal, progress_on

if TYPE_CHECKING:
    from polarprune.runs.train_config import TrainResult


def train(
    model: Model,
    data: Data,
    out: opt.Out,
    target: opt.Target = None,
    target_params: opt.TargetParams = None,
    target_latency: opt.TargetLatency = None,
    latency_table: opt.LatencyTable = None,
    task: opt.Task = "classification",
    method: opt.Method = "consensus",
    ejector: opt.Ejector = None,
    mass: opt.Mass = None,
    heads: opt.Heads = None,
    granularity: opt.Granularity = "both",
    align: opt.Align = None,
    epochs: opt.Epochs = 20,
    weights: Weights = None,
    teacher: opt.Teacher = None,
    compile: opt.Compile = False,
    seed: opt.Seed = 0,
    resume: opt.Resume = False,
    checkpoint_every: opt.CheckpointEvery = None,
    batch_size: opt.BatchSize = 128,
    lr: opt.Lr = None,
    schedule: opt.Schedule = "one-cycle",
    momentum: opt.Momentum = 0.9,
    weight_decay: opt.WeightDecay = 5e-4,
    label_smoothing: opt.LabelSmoothing = 0.05,
    image_size: ImageSize = None,
    crop_size: opt.CropSize = None,
    num_classes: Classes = None,
    precision: opt.Precision = "auto",
    device: opt.Device = "auto",
    workers: opt.Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Train in one pass and prune on the way.

    The network is cut down to --target of its MACs or below. Metrics, cuts and checkpoints go to
    the run folder; --target 1 trains dense.
    """
    from polarprune.runs import training
    from polarprune.runs.checkpoints import has_checkpoint
    from polarprune.runs.ranks import rank_of_environment
    from polarprune.runs.run_folder import CHECKPOINT
    from polarprune.runs.train_config import TrainConfig

    config = TrainConfig(
        model=model, data=data, out=out, target=target, target_params=target_params,
        target_latency=target_latency, latency_table=latency_table,
        task=task, method=method, ejector=ejector, mass=mass, heads=heads, granularity=granularity,
        align=align, epochs=epochs, weights=None if weights is None else Path(weights),
        teacher=teacher, compile=compile, seed=seed,
        resume=resume, checkpoint_every=checkpoint_every, batch_size=batch_size, lr=lr,
        schedule=schedule, momentum=momentum, crop_size=crop_size,
        weight_decay=weight_decay, label_smoothing=label_smoothing, image_size=image_size,
        num_classes=num_classes, precision=precision, device=device, workers=workers,
    )  # fmt: skip
    terminal = Terminal(as_json)

    def how_to_go_on() -> str | None:
        words = f"go on from the last checkpoint in {out} by the same command with --resume"
        return words if has_checkpoint(out / CHECKPOINT) else None

    with noting_when_stopped(how_to_go_on), progress_on(sys.stderr) as progress:
        result = training.train(config, progress)
    if rank_of_environment():
        return  # one voice is enough
    terminal.show(
        f"{sentence(task_figures(result.figures))} on the test split{_given_words(result)}, "
        f"{result.seconds:.0f} s.",
        f"MACs {result.macs:,} of {result.dense_macs:,} ({100 * result.macs_ratio:.1f} %), "
        f"parameters {result.params:,} of {result.dense_params:,}, "
        f"residual blocks removed: {result.blocks_removed}.",
        f"{sentence(cut_figures(result.figures))}, "
        f"training MACs {100 * result.train_macs_ratio:.1f} % of dense training.",
        *_latency_words(result, latency_table),
        f"Run folder {result.run}; look at it with: polarprune inspect {result.run}",
    )
    terminal.result(result.as_dict())


def _given_words(result: "TrainResult") -> str:
    given = [f"{100 * v:.2f} %" for key, v in result.figures.items() if key.startswith("given_")]
    return f" (the weights given: {given[0]})" if given else ""


def _latency_words(result: "TrainResult", latency_table: Path | None) -> list[str]:
    from polarprune.latency_table import read_latency_table

    if result.latency_ratio is None or latency_table is None:
        return []
    batch = read_latency_table(latency_table).head.get("batch")
    there = "" if batch is None else f" --batch {batch}"
    return [
        f"Predicted latency {100 * result.latency_ratio:.1f} % of the dense network's, channel "
        f"counts in multiples of {result.align}; measure it with: polarprune bench {result.run}"
        f"{there}"
    ]
