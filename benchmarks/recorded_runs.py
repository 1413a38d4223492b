"""One training run as a record: its result, how it came about, where it was made."""

from pathlib import Path
from typing import Any

from benchmarks.records import describe_machine
from polarprune.run_folder import RunFolder
from polarprune.training import Progress, TrainConfig, train


def recorded_run(config: TrainConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Train, or go on with it; what is recorded of it, without a path of this machine."""
    result = train(config, progress).as_dict()
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


def _short(cut: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cut.items() if key != "certificate"}
