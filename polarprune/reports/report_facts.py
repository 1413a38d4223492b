"""All that a run folder says of itself, read and checked before a page is made of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarprune.errors import ConfigError, RunFolderError
from polarprune.files.typed_json import build_known
from polarprune.inspection.inspecting import NetworkInspection, inspect_run
from polarprune.reports.gate_story import GateStory
from polarprune.reports.measured_latency import MeasuredLatency
from polarprune.runs.run_folder import CHECKPOINT, RUN_FILE, RunFolder
from polarprune.runs.run_lines import (
    CutLine,
    EpochLine,
    read_cuts,
    read_epochs,
    read_openness,
)

DENSE = "dense"
"""Where `polarprune demo` puts the dense run, inside of the pruned one."""


@dataclass(frozen=True)
class ResultLine:
    """What is shown of `result` in run.json (train_config.TrainResult says what is what)."""

    dense_macs: int
    macs: int
    params: int
    dense_params: int
    blocks_removed: int
    train_macs_ratio: float
    seconds: float
    joules: float | None = None
    align: int = 1
    latency_ratio: float | None = None
    top1: float | None = None
    miou: float | None = None
    dice: float | None = None
    agreement: float | None = None
    pixel_agreement: float | None = None
    dynamic_top1: float | None = None
    dynamic_miou: float | None = None


@dataclass(frozen=True)
class RunHead:
    """What run.json says."""

    config: dict[str, Any]
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    seed: int | None = None
    versions: dict[str, str] | None = None
    device: str | None = None
    bf16: bool | None = None
    threads: int | None = None
    git: str | None = None
    result: ResultLine | None = None


@dataclass(frozen=True)
class ReportFacts:
    """What a page is made of.

    Attributes:
        headline: which figure says how good the network is, "top1" or "miou".
        dense: of the same network trained alike without pruning, where that run lies in RUN/dense.
        found: the network now, before and after.
        story: None where no gate has decided anything yet.
    """

    path: Path
    head: RunHead
    headline: str
    dense: ResultLine | None
    found: NetworkInspection
    epochs: tuple[EpochLine, ...]
    cuts: tuple[CutLine, ...]
    story: GateStory | None
    latency: MeasuredLatency | None

    @property
    def model(self) -> str:
        """The --model name."""
        return str(self.head.config["model"])

    @property
    def data(self) -> str:
        """The --data name, of a folder its last part."""
        return Path(str(self.head.config["data"])).name

    @property
    def is_dense(self) -> bool:
        """Whether nothing was to be cut."""
        return 1 in map(self.head.config.get, ("target", "target_params", "target_latency"))

    @property
    def has_checkpoint(self) -> bool:
        """Whether an unfinished run can be gone on with."""
        return (self.path / CHECKPOINT).is_dir()


def read_facts(path: Path, latency: MeasuredLatency | None) -> ReportFacts:
    """Read a run folder.

    Args:
        latency: of this run, where it was measured.

    Raises:
        RunFolderError: it is no run folder, or a file in it is broken.
        ConfigError, BackendUnavailable, WeightsError: its network cannot be built here.
    """
    from polarprune.tasks import build_task

    run = RunFolder(path)
    head = _read_head(run)
    run.check_whole()
    headline = build_task(run.task).headline
    epochs, cuts, openness = read_epochs(path), read_cuts(path), read_openness(path)
    found = inspect_run(run)
    story = GateStory(path, found.sites, openness, cuts, epochs) if openness else None
    dense = _dense_beside(path, head)
    return ReportFacts(path, head, headline, dense, found, epochs, cuts, story, latency)


def _read_head(run: RunFolder) -> RunHead:
    path = run.path / RUN_FILE
    try:
        head: RunHead = build_known(RunHead, run.document)
    except ValueError as error:
        raise RunFolderError(f"{path}: {error}; put the file right") from error
    if not isinstance(head.config.get("data"), str):
        raise RunFolderError(f"{path} names no data; put the file right")
    return head


def _dense_beside(path: Path, head: RunHead) -> ResultLine | None:
    """The result of RUN/dense, if that run differs from this one in what it prunes alone."""
    if not (path / DENSE / RUN_FILE).is_file():
        return None
    try:
        other = _read_head(RunFolder(path / DENSE))
    except (RunFolderError, ConfigError):
        return None
    pruning = (
        "target", "target_params", "target_latency", "latency_table", "align", "granularity",
        "method",
    )  # fmt: skip
    ours, theirs = (
        {key: value for key, value in each.config.items() if key not in pruning}
        for each in (head, other)
    )
    alike = ours == theirs and other.config.get("target") == 1
    return other.result if alike else None
