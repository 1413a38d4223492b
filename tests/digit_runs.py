"""Short runs of `train` on real digits, and a way to kill one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from polarprune.runs.train_config import TrainConfig

EPOCHS = 5  # search from step 5, settle at step 22 of 55: inside epoch 2


def config(out: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        model="resnet20", data="digits", out=out, image_size=8, epochs=EPOCHS, batch_size=128
    )
    return replace(base, **changes)


class Killed(Exception):
    """Stands for a power cut."""


def kill_in_epoch(number: int) -> Callable[[str, int, int, dict[str, float]], None]:
    def progress(text: str, step: int, steps: int, figures: dict[str, float]) -> None:
        if text.startswith(f"epoch {number}/"):
            raise Killed

    return progress
