"""ResNet-56 on CIFAR-10, dense and pruned to half, trained on the GPU; several seeds, resumable.

    python -m benchmarks.gpu cifar --data TREE                        # or a folder of mosaics
    python -m benchmarks.gpu cifar --data TREE --latency-table FILE   # half of that time too
    python -m benchmarks.gpu cifar --data TREE --continue FILE --work FOLDER
    python -m benchmarks.gpu cifar --dry-run --data digits --epochs 1

Test images are used once, on the last epoch. Runs go side by side, one process each: a network this
small waits for kernel launches. One that time stops is packed into a tar beside the record and goes
on from its last checkpoint when --work names the folder that holds it.
"""

import multiprocessing
import tarfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.record_file import RecordFile
from benchmarks.recorded_runs import mean_of
from polarprune.errors import first_line
from polarprune.runs.run_folder import RUN_FILE
from polarprune.runs.train_config import TrainConfig

ROWS: dict[str, dict[str, Any]] = {
    "dense": {"target": 1.0},
    "macs-0.5": {"target": 0.5},
    "latency-0.5": {"target_latency": 0.5},
}
CHECKPOINT_EVERY = 100  # steps: seconds of work
# To write a checkpoint, to pack it, and to end all processes.
_ENDING = 25.0


@dataclass(frozen=True)
class Job:
    """One run; goes to another process.

    Attributes:
        ends: seconds since the epoch: clocks of two processes agree on that.
    """

    row: str
    seed: int
    config: TrainConfig
    ends: float


def jobs_left(
    rows: Iterable[str], seeds: range, record: RecordFile, work: Path, ends: float,
    options: dict[str, Any], table: Path | None,
) -> list[Job]:  # fmt: skip
    """What is not recorded, each row's first seed first; unpacked where a tar of it is there."""
    done = {(line["row"], line["seed"]) for line in record.all("run")}
    found = []
    for seed in seeds:
        for row in rows:
            if (row, seed) in done:
                continue
            out = work / f"{row}-{seed}"
            packed = work / f"{out.name}.tar"
            if packed.is_file() and not out.exists():
                with tarfile.open(packed) as tar:
                    tar.extractall(work, filter="data")
            bound = dict(ROWS[row])
            if "target_latency" in bound:
                bound["latency_table"] = table
            config = TrainConfig(
                out=out, seed=seed, resume=(out / RUN_FILE).exists(),
                checkpoint_every=CHECKPOINT_EVERY, align=None if table else 1, **bound, **options,
            )  # fmt: skip
            found.append(Job(row, seed, config, ends))
    return found


def train_until(job: Job) -> dict[str, Any]:
    """A finished run's record, or {"stopped": where}; in a process of its own."""
    from benchmarks.resnet56_cifar10 import TimeIsUp, run_until

    try:
        record = run_until(job.config, time.monotonic() + job.ends - time.time())
    except TimeIsUp as stop:
        return {"stopped": str(stop)}
    table = job.config.latency_table
    record["config"]["latency_table"] = None if table is None else table.name
    return record


def train_all(
    jobs: list[Job], record: RecordFile, at_once: int, images: dict[str, int]
) -> list[str]:
    """Every run as far as time goes; what is left, in words."""
    left = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, context) as pool:
        waiting = {pool.submit(train_until, job): job for job in jobs}
        for future in as_completed(waiting):
            job = waiting[future]
            name = f"{job.row}-{job.seed}"
            try:
                found = future.result()
            except Exception as error:  # whatever it was, the other runs go on
                left.append(f"{name} failed: {type(error).__name__}: {first_line(error)}")
                continue
            if "stopped" in found:
                left.append(found["stopped"])
                pack(job.config.out, record.path)
                continue
            record.add("run", row=job.row, seed=job.seed, images=images, **found)
            print(f"{name}: {100 * found['result']['top1']:.2f} %", flush=True)
    return left


def pack(run: Path, record: Path | None) -> Path | None:
    """One tar of an unfinished run, beside the record: a lent machine hands back few files."""
    if record is None or not (run / RUN_FILE).exists():
        return None
    target = record.parent / f"{run.name}.tar"
    with tarfile.open(target, "w") as tar:
        tar.add(run, arcname=run.name)
    return target


def cifar_ends(deadline: Deadline) -> float:
    """When runs stop, so that everything is written in time; seconds since the epoch."""
    return time.time() + deadline.left() - _ENDING


def cifar_table(record: RecordFile) -> Table:
    """One line a row: every seed, and means."""
    table = Table(title=record.head["what"])
    for column in ("row", "n", "top-1, % (each run)", "kept MACs", "predicted latency", "seconds"):
        table.add_column(column)
    for row in ROWS:
        found = [line["result"] for line in record.all("run") if line["row"] == row]
        if not found:
            continue
        each = ", ".join(f"{100 * result['top1']:.2f}" for result in found)
        latency = "-"
        if all(result.get("latency_ratio") is not None for result in found):
            latency = f"{mean_of(found, 'latency_ratio'):.3f}"
        table.add_row(
            row, str(len(found)), f"{100 * mean_of(found, 'top1'):.2f} ({each})",
            f"{mean_of(found, 'macs_ratio'):.3f}", latency, f"{mean_of(found, 'seconds'):.0f}",
        )  # fmt: skip
    return table
