"""The figures of metrics.jsonl as TensorBoard events, where TensorBoard is installed."""

from pathlib import Path
from time import time_ns
from typing import Any

EVENTS = "tensorboard"

# Under which heading each figure of a line is drawn; others are left out.
_TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "images_per_s": "train/images_per_s",
    "joules": "train/joules",
    "top1": "test/top1",
    "miou": "test/miou",
    "dice": "test/dice",
    "macs": "network/macs",
    "train_macs_ratio": "network/train_macs_ratio",
}


def write_events(run: Path, line: dict[str, Any]) -> None:
    """Add the figures of one epoch to RUN/tensorboard.

    A file an epoch, so that nothing is open when a run is killed; TensorBoard reads them as one.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception:  # a broken installation raises whatever it likes, and must not end a run
        return
    suffix = f".epoch{line['epoch']}"
    older = set((run / EVENTS).glob("*"))
    # What a killed run wrote beyond its last checkpoint is hidden by purge_step.
    with SummaryWriter(run / EVENTS, purge_step=line["step"], filename_suffix=suffix) as writer:
        for key, tag in _TAGS.items():
            if line.get(key) is not None:
                writer.add_scalar(tag, line[key], line["step"])
    # TensorBoard reads files in the order of their names, which count the second and then 9, 10.
    for file in set((run / EVENTS).glob("*")) - older:
        file.rename(file.with_name(f"events.out.tfevents.{time_ns()}{suffix}"))


def remove_events(run: Path) -> None:
    """Take out what write_events wrote."""
    for file in (run / EVENTS).glob("events.*.epoch*"):
        file.unlink()
    if (run / EVENTS).is_dir():
        (run / EVENTS).rmdir()
