"""What a run writes about itself: run.json, and the lines of cuts.jsonl and openness.jsonl."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision

import polarprune
from polarprune.cut_records import CutRecord
from polarprune.datasets import Dataset
from polarprune.errors import RunFolderError
from polarprune.gates import GatedNetwork
from polarprune.onepass import OnePass
from polarprune.runs.checkpoints import has_checkpoint
from polarprune.runs.run_folder import (
    CHECKPOINT,
    CUTS_FILE,
    METRICS_FILE,
    OPENNESS_FILE,
    RUN_FILE,
    SCHEMA,
    RunFolder,
    being_written,
)
from polarprune.runs.tensorboard_events import remove_events
from polarprune.runs.train_config import TrainConfig, TrainResult
from polarprune.tasks import Segmentation, Task


def finished_result(config: TrainConfig) -> TrainResult | None:
    """Refuse to touch another run; the result where this very run is finished already.

    Raises:
        RunFolderError: the folder holds something else.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"--out {out} is a file; give a folder")
    if not config.resume:
        # A run that was killed as it wrote its first file leaves that half, and nothing to resume.
        half = being_written(out / RUN_FILE)
        if out.exists() and any(path != half for path in out.iterdir()):
            raise RunFolderError(
                f"--out {out} is not empty; go on with that run by --resume, or choose another"
            )
        return None
    found = RunFolder(out)
    theirs, ours = found.config, config.as_dict()
    different = [key for key in ours if theirs.get(key) != ours[key]]
    if different:
        key = different[0]
        raise RunFolderError(
            f"{out} holds a run with {key} = {theirs.get(key)!r}, not {ours[key]!r}; "
            "resume with the same settings or choose another folder"
        )
    result = found.document.get("result")
    return None if result is None else TrainResult.from_dict({**result, "run": str(out)})


def make_run_folder(out: Path) -> None:
    """Make the folder, and those above it, where they are not there yet.

    Raises:
        RunFolderError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"--out {out} cannot be made ({error.strerror}); choose another folder"
        ) from None


@contextmanager
def nothing_left_of_a_false_start(out: Path) -> Iterator[None]:
    """Take what a new run wrote out of its folder, if it fails before its first checkpoint.

    Else the corrected command would find the folder taken. A run that is stopped (Ctrl-C) has not
    failed: it stays, and --resume begins it anew.
    """
    made = not out.exists()
    try:
        yield
    except Exception:
        if not has_checkpoint(out / CHECKPOINT):
            _remove_start(out, folder_too=made)
        raise


def _remove_start(out: Path, folder_too: bool) -> None:
    """Remove all that a run may have written by its first checkpoint; nobody else's files."""
    written = [out / name for name in (RUN_FILE, METRICS_FILE, CUTS_FILE, OPENNESS_FILE)]
    files = [name for path in written for name in (path, being_written(path))]
    removals: list[Callable[[], object]] = [
        *(partial(file.unlink, missing_ok=True) for file in files),
        partial(shutil.rmtree, being_written(out / CHECKPOINT), ignore_errors=True),
        partial(remove_events, out),
    ]
    if folder_too:
        removals.append(out.rmdir)
    for remove in removals:
        with suppress(OSError):  # what the run failed by is to be told, not this
            remove()


def run_document(
    config: TrainConfig,
    data: Dataset,
    device: torch.device,
    bf16: bool,
    result: TrainResult | None,
) -> dict[str, Any]:
    """run.json: all that describes a run, and its result once there is one."""
    return {
        "schema": SCHEMA,
        "config": config.as_dict(),
        "seed": config.seed,
        "versions": {
            "polarprune": polarprune.__version__,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "device": str(device),
        "bf16": bf16,
        "threads": torch.get_num_threads(),
        "git": _git_revision(),
        "mean": list(data.mean),
        "std": list(data.std),
        "resize_side": data.resize_side,
        "classes": data.classes,
        "input_shape": [data.channels, data.image_size, data.image_size],
        "result": None if result is None else result.as_dict(),
    }


def cut_line(cut: CutRecord, task: Task) -> dict[str, Any]:
    """One line of cuts.jsonl; what OnePass measures is the task's headline here."""
    line = cut.as_dict()
    line[f"{task.headline}_before"] = line.pop("metric_before")
    line[f"{task.headline}_after"] = line.pop("metric_after")
    return line


def openness_line(one: OnePass) -> dict[str, Any]:
    """One line of openness.jsonl: how likely each unit is open, by site."""
    assert isinstance(one.network, GatedNetwork)
    openness = {
        site.name: [round(p, 3) for p in gate.running.tolist()]
        for site, gate in zip(one.network.sites, one.network.site_gates(), strict=True)
    }
    return {"step": one.steps, "open": openness}


def _git_revision() -> str | None:
    """The revision of the source tree that polarprune runs from, None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def agreement_figures(folder: Path, task: Task, dense_macs: int) -> dict[str, float]:
    """How a run's last cut compares with what was there before; 1 where nothing was cut."""
    cuts = RunFolder(folder).cuts()
    kind = "output_agreement" if task.name == Segmentation.name else "agreement"
    name = "pixel_agreement" if task.name == Segmentation.name else "agreement"
    found = {name: cuts[-1][kind] if cuts else 1.0}
    if cuts and cuts[-1]["dynamic_macs"] is not None:
        before = cuts[-1][f"{task.headline}_before"]
        found[f"dynamic_{task.headline}"] = before
        found["dynamic_macs_ratio"] = cuts[-1]["dynamic_macs"] / dense_macs
    if cuts and cuts[-1]["forecast_macs"] is not None:
        found["forecast_macs_ratio"] = cuts[-1]["forecast_macs"] / dense_macs
    return found
