"""Is a cut network faster on a GPU? Blocks, channels and aligned channels, against dense.

    PYTHONPATH=.:export:deploy python -m benchmarks.gpu                  # minutes on one GPU
    PYTHONPATH=.:export:deploy python -m benchmarks.gpu --compile        # Inductor's column too
    PYTHONPATH=.:export:deploy python -m benchmarks.gpu --dry-run        # rehearsal on the CPU
    PYTHONPATH=.:export:deploy python -m benchmarks.gpu --dry-run --networks resnet18 --batches 1

Half of the block sites, or half of all channel units, are closed at random: the question is time,
not accuracy. The aligned cut keeps what the channel cut keeps and opens the next units by the same
scores until each site's count is a multiple; nothing else differs. Dense goes through the same
rewriting with everything open, and is held against the network it came from. Batch norms are folded
on all sides. Every cut is certified in float64 before it is timed.

What is timed: host latency of one replay of a CUDA graph and the wait for it, and beside it device
time (CUDA events), fp16, channels last, warm caches; rounds, controls and intervals are
polarprune_deploy.latency's. cuDNN chooses its kernels once a process, for a network and its control
alike: the spread of that choice shows only when the program is run again.

The record goes to $OUT/gpu.json; without OUT to benchmarks/results/gpu/latency.json, except that a
rehearsal (small image, float32, no graph) is then not written at all. The table comes last.
"""

import json
import os
import shutil
import subprocess
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torchvision
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

from benchmarks.records import describe_machine
from polarprune import GatedNetwork, attach_gates, certify, collapse, count_macs
from polarprune.errors import BackendUnavailable, ParityError, PolarpruneError
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.environment import describe_environment
from polarprune_deploy.input_making import random_inputs
from polarprune_deploy.latency import MIN_ROUNDS, compare_latency
from polarprune_deploy.runner_torch import INPUT, TorchRunner
from polarprune_export.folding import fold_batchnorms

RESULTS = Path(__file__).parent / "results" / "gpu" / "latency.json"
CUTS = ("blocks", "channels", "aligned channels")
ALIGN = 8
# fp16 keeps 11 bits and rounds in every layer; an error above this is another network.
PRECISION_LIMIT = 0.05
GPU_FIELDS = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu"
# Older drivers do not know this one, and then answer nothing at all.
NEWER_FIELDS = f"{GPU_FIELDS},clocks_event_reasons.active"


@dataclass(frozen=True)
class Setting:
    """What both sides of a comparison share: on a GPU half precision and a CUDA graph."""

    device: str
    image: int
    compiled: bool

    def runner(self, name: str, network: fx.GraphModule) -> TorchRunner:
        """A network loaded in this way."""
        cuda = self.device == "cuda"
        mode = "-".join(["compile"] * self.compiled + ["graph"] * cuda) or "eager"
        return TorchRunner(
            network, (3, self.image, self.image), name=name, device=self.device, mode=mode,
            precision="fp16" if cuda else "fp32", threads=torch.get_num_threads(),
        )  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One network of a comparison: folded and float32, with what the record says about it."""

    network: fx.GraphModule
    facts: dict[str, Any]


def draw_decisions(gated: GatedNetwork, cut: str, seed: int) -> dict[str, Tensor]:
    """Which units a cut leaves open; an equal seed gives equal scores to every cut."""
    generator = torch.Generator().manual_seed(seed)
    scores = {site.name: torch.rand(site.units, generator=generator) for site in gated.sites}
    kind = "block" if cut == "blocks" else "channel"
    mine = [site for site in gated.sites if site.kind == kind]
    ranked = torch.cat([scores[site.name] for site in mine]).sort(descending=True).values
    threshold = ranked[(len(ranked) + 1) // 2 - 1]
    decisions = {}
    for site in mine:
        count = int((scores[site.name] >= threshold).sum())
        if kind == "channel":
            multiple = ALIGN if cut == "aligned channels" else 1
            count = min(site.units, -(-max(1, count) // multiple) * multiple)
        open_units = scores[site.name].argsort(descending=True)[:count]
        decisions[site.name] = torch.zeros(site.units, dtype=torch.bool)
        decisions[site.name][open_units] = True
    return decisions


def build_sides(name: str, image: int, seed: int) -> dict[str, Side]:
    """Dense and the three cuts of one torchvision network, each certified in float64."""
    torch.manual_seed(seed)
    net: nn.Module = getattr(torchvision.models, name)(weights=None)
    images = torch.randn(2, 3, image, image)
    _settle_norms(net, images)
    gated = attach_gates(net, images)
    dense_macs = count_macs(net, images)
    sides = {}
    for cut in ("dense", *CUTS):
        decisions = {} if cut == "dense" else draw_decisions(gated, cut, seed)
        gated.set_decisions(decisions)
        small = collapse(gated)
        macs = count_macs(small, images)
        facts = {
            "macs": macs,
            "macs_ratio": macs / dense_macs,
            "open": {site: int(units.sum()) for site, units in decisions.items()},
            "certificate": certify(gated, small, images).as_dict(),
        }
        assert isinstance(small, fx.GraphModule)
        sides[cut] = Side(fold_batchnorms(small, images)[0], facts)
    return sides


def _settle_norms(net: nn.Module, images: Tensor) -> None:
    """Statistics of random images: with fresh ones MobileNetV2's outputs are zero in fp16."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches seen
    with torch.no_grad():
        net.train()(images)
    net.eval()


def check_precision(runner: TorchRunner, side: Side, batch: int, seed: int) -> float:
    """Largest relative error of what is timed against float32 on the CPU.

    Raises:
        ParityError: it is above what half precision explains.
    """
    inputs = random_inputs(runner, batch, np.random.default_rng(seed))
    (got,) = runner.run(inputs).values()
    with torch.no_grad():
        expected = side.network(torch.from_numpy(inputs[INPUT]).float()).numpy()
    error = float(np.abs(got.astype(np.float32) - expected).max() / np.abs(expected).max())
    if not error <= PRECISION_LIMIT:
        raise ParityError(
            f"{runner.name} differs by {error:.3g} in {runner.precision} from float32, allowed "
            f"{PRECISION_LIMIT}; it was not timed"
        )
    return error


def compare(
    name: str, sides: dict[str, Side], setting: Setting, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """The rows of one network: every batch size, every cut; what is refused is a row that says so.

    One refusal must not cost the rows of the others: a machine with a GPU is lent for minutes.
    """
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        runners = [
            stack.enter_context(closing(setting.runner(f"{name}, {cut}", side.network)))
            for cut, side in sides.items()
        ]
        for batch in options["batches"]:
            head = {"network": name, "batch": batch, "compiled": setting.compiled}
            try:
                rows += [{**head, **row} for row in _timed(runners, sides, batch, options)]
            except PolarpruneError as error:
                rows += [{**head, "cut": cut, "not_timed": str(error)} for cut in CUTS]
    return rows


def _timed(
    runners: list[TorchRunner], sides: dict[str, Side], batch: int, options: dict[str, Any]
) -> list[dict[str, Any]]:
    seed = options["seed"]
    pairs = zip(runners, sides.values(), strict=True)
    errors = [check_precision(runner, side, batch, seed) for runner, side in pairs]
    before = gpu_state()
    comparisons = compare_latency(
        runners, batch=batch, rounds=options["rounds"], seed=seed, family=options["family"]
    )
    state = {"gpu_before": before, "gpu_after": gpu_state()}
    return [
        {"cut": cut, **_as_row(comparison), **state, "precision_error": error}
        for cut, error, comparison in zip(CUTS, errors[1:], comparisons, strict=True)
    ]


def _as_row(comparison: Comparison) -> dict[str, Any]:
    fields = ["round", "position", "network", "repetitions", "elapsed_ns", "device_ns"]
    fields.append("enqueue_ns")
    samples = [[getattr(sample, field) for field in fields] for sample in comparison.samples]
    return {**comparison.conclusions(), "sample_fields": fields, "samples": samples}


def gpu_state() -> dict[str, str] | None:
    """Driver, clocks, heat and load, as nvidia-smi or torch tells them; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    for fields in (NEWER_FIELDS, GPU_FIELDS) if shutil.which("nvidia-smi") else ():
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if answer.returncode == 0:
            values = answer.stdout.partition("\n")[0].split(",")
            return dict(zip(fields.split(","), map(str.strip, values), strict=False))
    try:  # torch asks nvidia-ml-py, which may be absent
        return {"clocks.sm": f"{torch.cuda.clock_rate()} MHz"}
    except Exception:
        return {}


def print_table(record: dict[str, Any]) -> None:
    """One line a network, batch and cut; a column of ratios a way of running."""
    ways = sorted({row["compiled"] for row in record["rows"]})
    table = Table(title=record["what"])
    columns = ["network", "batch", "cut", "kept MACs"]
    for compiled in ways:
        columns += ["compiled ms" if compiled else "ms", "dense over cut", "control", "verdict"]
    for column in columns:
        table.add_column(column)
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in record["rows"]:
        kept = record["networks"][row["network"]][row["cut"]]["macs_ratio"]
        key = (row["network"], str(row["batch"]), row["cut"], f"{kept:.1%}")
        lines.setdefault(key, []).extend(_cells(row))
    for key, cells in lines.items():
        table.add_row(*key, *cells)
    Console(width=60 + 60 * len(ways)).print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    if "not_timed" in row:
        return ["-", "-", "-", f"not timed: {row['not_timed']}"]
    return [f"{row['ms']:.3f}", _interval(row), _interval(row["control"]), row["verdict"]]


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['speedup']:.3f} [{ratio['ci_low']:.3f}, {ratio['ci_high']:.3f}]"


def write(record: dict[str, Any], dry_run: bool) -> None:
    """One entry a line, one row a line; a rehearsal never goes where results lie."""
    folder = os.environ.get("OUT")
    if dry_run and not folder:
        return
    path = Path(folder) / "gpu.json" if folder else RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(row, allow_nan=False) for row in record["rows"])
    entries = [
        f"{json.dumps(key)}: " + (f"[\n{rows}\n]" if key == "rows" else json.dumps(value))
        for key, value in record.items()
    ]
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n")


def describe(image_size: int, dry_run: bool, options: dict[str, Any]) -> dict[str, Any]:
    """The head of the record."""
    where = "CPU REHEARSAL, fp32, no graph" if dry_run else "fp16, channels last, CUDA graph replay"
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {
        "what": f"collapsed against dense, {image_size}x{image_size}, {where}",
        "dry_run": dry_run,
        "n": options["rounds"],
        "seed": options["seed"],
        "request": {**options, "image_size": image_size, "align": ALIGN},
        "machine": {**describe_environment(), **describe_machine(), **versions},
        "gpu_before": gpu_state(),
        "gpu_after": None,
        "networks": {},
        "rows": [],
    }


def main(
    networks: Annotated[str, typer.Option(help="torchvision names")] = (
        "resnet18,resnet50,mobilenet_v2"
    ),
    batches: Annotated[str, typer.Option(help="sizes; 1,2 in a rehearsal")] = "1,64",
    image_size: Annotated[int, typer.Option(help="pixels a side; 32 in a rehearsal")] = 224,
    rounds: Annotated[int, typer.Option(help="paired rounds a row, at least 40")] = MIN_ROUNDS,
    seed: Annotated[int, typer.Option(help="of weights, decisions, inputs and orders")] = 0,
    compile: Annotated[bool, typer.Option("--compile", help="time torch.compile as well")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="on the CPU, small")] = False,
) -> None:
    """Measure, write the record, print the table."""
    if dry_run:
        batches, image_size = ("1,2" if batches == "1,64" else batches), min(image_size, 32)
    elif not torch.cuda.is_available():
        raise BackendUnavailable("no CUDA device is here; rehearse with --dry-run")
    names, sizes = networks.split(","), [int(size) for size in batches.split(",")]
    # Each side gets its best kernels; only deterministic ones, so that a control is bit-equal.
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = True
    ways = [False, True] if compile else [False]
    family = len(names) * len(sizes) * len(CUTS) * len(ways)
    options = {"batches": sizes, "rounds": rounds, "seed": seed, "family": family}
    record = describe(image_size, dry_run, options)
    for name in names:
        sides = build_sides(name, image_size, seed)
        record["networks"][name] = {cut: side.facts for cut, side in sides.items()}
        for compiled in ways:
            setting = Setting("cpu" if dry_run else "cuda", image_size, compiled)
            record["rows"] += compare(name, sides, setting, options)
            record["gpu_after"] = gpu_state()
            write(record, dry_run)  # after each network: time on a GPU may end at any moment
    print_table(record)


if __name__ == "__main__":
    try:
        typer.run(main)
    except PolarpruneError as error:
        raise SystemExit(f"error: {error}") from None
