"""Are cut networks faster than dense ones on a GPU? Every cut against dense, in one race a cell.

    python -m benchmarks.gpu latency                               # the headline first, 500 s
    python -m benchmarks.gpu latency --continue FILE               # what is missing there
    python -m benchmarks.gpu latency --networks resnet50 --modes compile --seconds 550
    python -m benchmarks.gpu latency --dry-run --networks resnet18 --seconds 60

Host latency and, on a GPU, device time; warm caches; rounds, controls, checks against float32 and
intervals are polarprune_deploy.latency's. Intervals hold jointly over all cells that a call's
options name, whether time allowed them or not. cuDNN chooses its kernels by trying, deterministic
ones, once a process, for a network and its control alike.
"""

import gc
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.deadline import Deadline, TimeIsUp
from benchmarks.gpu.latency_cells import Cell, Costs
from benchmarks.gpu.latency_sides import load_sides
from benchmarks.gpu.record_file import RecordFile
from benchmarks.gpu.uniform_networks import CUTS, NetworkCuts, Side
from polarprune.errors import ParityError, PolarpruneError, Refused
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.latency import compare_latency

# A cell that takes longer is refused, and the record says so.
MOST_SECONDS = 120.0
SAMPLE_FIELDS = ("round", "position", "network", "repetitions", "elapsed_ns", "device_ns",
                 "enqueue_ns")  # fmt: skip


@dataclass
class LatencyPart:
    """Runs cells as far as time goes.

    Attributes:
        device: "cuda" or "cpu".
        gpu: what it is called; stands in every row.
        family: verdicts whose intervals hold jointly.
    """

    record: RecordFile
    deadline: Deadline
    device: str
    gpu: str
    image_size: int
    rounds: int
    seed: int
    family: int
    costs: Costs = field(default_factory=Costs)
    _networks: dict[str, NetworkCuts] = field(default_factory=dict)
    _broken: dict[str, str] = field(default_factory=dict)

    def run(self, cells: list[Cell]) -> list[Cell]:
        """Time what is not in the record yet; what time did not allow comes back."""
        done = {_key(line) for line in self.record.all("cell") if "failed" not in line}
        left = []
        for cell in cells:
            if _key(cell.key) in done:
                continue
            guess = self.costs.guess(cell, self._built(cell))
            if not self.deadline.allows(guess):
                left.append(cell)
                continue
            print(f"{cell} ({self.deadline.left():.0f} s left)", flush=True)
            try:
                self._cell(cell)
            except TimeIsUp:
                left.append(cell)
        return left

    def _built(self, cell: Cell) -> bool:
        return cell.network in self._networks and self._networks[cell.network].has(cell.kept)

    def _cell(self, cell: Cell) -> None:
        """One line; what is refused is a row that says so, and must not cost the others theirs.

        Raises:
            TimeIsUp: its rounds would take longer than what is left; nothing is recorded.
        """
        begun = time.monotonic()
        line: dict[str, Any] = {**cell.key, "device": self.gpu}
        try:
            sides, refused = self._sides(cell)
            begun = time.monotonic()
            rows, more = self._race(cell, sides)
        except PolarpruneError as error:
            rows = [{"cut": cut, "not_timed": str(error)} for cut in CUTS]
            refused, more = {}, {}
        except RuntimeError as error:  # of CUDA: a later call tries again
            line["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            rows, refused, more = [], {}, {}
        rows += [{"cut": cut, "not_timed": reason} for cut, reason in refused.items()]
        for row in rows:
            row["device_name"] = self.gpu
        seconds = time.monotonic() - begun
        self.costs.saw(cell, seconds)
        self.record.add("cell", **line, seconds=round(seconds, 1), rows=rows, **more)
        _clean_up(cell)
        if "failed" in line and self.device == "cuda":
            torch.cuda.synchronize()  # raises where CUDA is lost to this process

    def _sides(self, cell: Cell) -> tuple[dict[str, Side], dict[str, str]]:
        """Dense and its cuts, described in the record when they are new; and what was refused."""
        if cell.network in self._broken:
            raise Refused(self._broken[cell.network])
        if cell.network not in self._networks:
            try:
                self._networks[cell.network] = NetworkCuts(cell.network, self.image_size, self.seed)
            except PolarpruneError as error:  # and the next cell would take as long to say so
                self._broken[cell.network] = str(error)
                raise
        new = not any(
            line["network"] == cell.network and line["kept"] == cell.kept
            for line in self.record.all("networks")
        )
        made = self._networks[cell.network].at(cell.kept)
        if new:
            self.record.add(
                "networks", network=cell.network, kept=cell.kept, weights="random: latency only",
                dense=made.dense.facts, cuts={name: side.facts for name, side in made.cuts.items()},
                refused=made.refused,
            )  # fmt: skip
        return {"dense": made.dense, **made.cuts}, made.refused

    def _race(
        self, cell: Cell, sides: dict[str, Side]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """All in one race; where one is not what it should be, each cut in a race of its own."""
        if len(sides) == 1:
            return [], {}
        try:
            return self._timed(cell, sides)
        except ParityError:
            if len(sides) == 2:
                raise
        rows: list[dict[str, Any]] = []
        races = []
        for name, side in list(sides.items())[1:]:
            try:
                found, more = self._timed(cell, {"dense": sides["dense"], name: side})
            except ParityError as error:
                rows.append({"cut": name, "not_timed": str(error)})
            else:
                rows += found
                races.append({"cut": name, **more})
        return rows, {"races": races}

    def _timed(
        self, cell: Cell, sides: dict[str, Side]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        with ExitStack() as stack:
            runners = load_sides(sides, cell, self.device, self.image_size, stack)
            allowed = min(MOST_SECONDS, self.deadline.left())
            try:
                found = compare_latency(
                    runners, batch=cell.batch, rounds=self.rounds, seed=self.seed,
                    family=self.family, max_seconds=allowed,
                )  # fmt: skip
            except Refused as error:
                if allowed < MOST_SECONDS and "rounds would take" in str(error):
                    raise TimeIsUp(str(error)) from None
                raise
        rows = [
            {"cut": cut, **_without_gpu(comparison)}
            for cut, comparison in zip(list(sides)[1:], found, strict=True)
        ]
        gpu = None if found[0].gpu is None else found[0].gpu.as_dict()
        return rows, {"gpu": gpu, "sample_fields": SAMPLE_FIELDS, "samples": _samples(found)}


def _key(values: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(values[name] for name in ("network", "kept", "precision", "mode", "batch"))


def _without_gpu(comparison: Comparison) -> dict[str, Any]:
    """The GPU's states are those of the race, and stand beside it once."""
    return {key: value for key, value in comparison.conclusions().items() if key != "gpu"}


def _samples(comparisons: list[Comparison]) -> list[tuple[Any, ...]]:
    """Every timed block once; device time is that of the block's runs together."""
    found = {
        (
            s.round, s.position, s.network, s.repetitions, s.elapsed_ns,
            None if s.device_ns is None else sum(s.device_ns), s.enqueue_ns,
        )
        for comparison in comparisons
        for s in comparison.samples
    }  # fmt: skip
    return sorted(found, key=lambda sample: sample[:2])


def _clean_up(cell: Cell) -> None:
    """Graphs and compiled code of one cell are gone before the next one is loaded."""
    if "compile" in cell.mode:
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
