"""The study's table and picture, made from its records alone."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.pareto.settings import EPOCHS, SETTINGS
from benchmarks.recorded_runs import each_of, mean_of

TABLE, PICTURE, SUMMARY = "pareto.md", "pareto.png", "pareto.json"
_CONFIDENCE = 0.95
_COLOURS = {
    "dense": "#333333", "ours": "#c0392b", "narrowed": "#2c6fbb", "control": "#8a8a8a",
    "torch-pruning": "#2e8b57", "papers B and C": "#7d3c98", "published": "#b8860b",
}  # fmt: skip

# The field's own figures, for orientation only: another network, other recipes, 200 epochs and
# more. ResNet-56 on CIFAR-10: share of the FLOPs that is left, points lost against its own dense
# network (shared reference papers.md, section D.2, which names each source).
PUBLISHED = (
    ("DepGraph", 0.469, -0.24), ("DepGraph", 0.389, -0.11), ("ResRep", 0.472, 0.0),
    ("C-SGD", 0.392, -0.05), ("GDP", 0.466, -0.07), ("HRank", 0.50, 0.09),
    ("polarization (Zhuang)", 0.53, -0.03), ("FTWT", 0.34, 1.03),
)  # fmt: skip

Run = dict[str, Any]
Records = dict[str, list[Run]]


def read_records(folder: Path) -> Records:
    """All records of a folder, by row as the settings have them, in the order of their seeds."""
    found: Records = defaultdict(list)
    for path in sorted(folder.glob("*-*.json")):
        record = json.loads(path.read_text())
        found[record["setting"]].append(record)
    order = [setting.name for setting in SETTINGS]
    return {name: found[name] for name in sorted(found, key=order.index)}


def write_report(folder: Path) -> str:
    """Write table, picture and summary beside the records' folder; the table."""
    records = read_records(folder)
    if not records:
        raise SystemExit(f"error: no records in {folder.name}; make some with: run")
    table = table_of(records) + dynamic_table(records)
    (folder.parent / TABLE).write_text(table + "\n")
    draw(records, folder.parent / PICTURE)
    summary = {"rows": [asdict(row) for row in rows_of(records)]}
    (folder.parent / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    return table


def difference(ours: list[float], theirs: list[float]) -> tuple[float, float, float] | None:
    """Mean of ours minus mean of theirs with its Welch interval at 95 %; None below two runs."""
    if min(len(ours), len(theirs)) < 2:
        return None
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(_CONFIDENCE)
    return float(np.mean(ours) - np.mean(theirs)), float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        top1: of each run, in per cent; mean: of all.
        macs, params: of what is left, over the whole network's.
        training: MACs of the training over those of the whole network for the recipe's epochs.
        seconds: wall clock of the fastest run; machines are shared.
        seconds_ratio: over that of the dense row; 0 where there is none.
        minus_dense, minus_narrowed, minus_random: in points with the interval, or nothing.
    """

    name: str
    what: str
    group: str
    top1: list[float]
    mean: float
    macs: float
    params: float
    training: float
    seconds: float
    seconds_ratio: float
    minus_dense: str
    minus_narrowed: str
    minus_random: str


def rows_of(records: Records) -> list[Row]:
    """One row a setting."""
    results = [run["result"] for runs in records.values() for run in runs]
    macs, params = (max(r[key] for r in results) for key in ("dense_macs", "dense_params"))
    rivals = ("dense", "narrowed", "random")
    usual = _least(records.get("dense", []))
    rows = []
    for name, runs in records.items():
        minus = {
            rival: in_words(difference(_top1(runs), _top1(records.get(rival, []))))
            for rival in rivals
            if rival != name
        }
        seconds = _least(runs)
        rows.append(
            Row(
                name, runs[0]["what"], runs[0]["group"], _top1(runs),
                mean=float(np.mean(_top1(runs))),
                macs=_mean(runs, lambda run: run["result"]["macs"] / macs),
                params=_mean(runs, lambda run: run["result"]["params"] / params),
                training=_mean(runs, lambda run: _spent(run) / (macs * EPOCHS)),
                seconds=seconds,
                seconds_ratio=seconds / usual,
                minus_dense=minus.get("dense", ""),
                minus_narrowed=minus.get("narrowed", ""),
                minus_random=minus.get("random", ""),
            )
        )  # fmt: skip
    return rows


def table_of(records: Records) -> str:
    """One line a row in Markdown, its differences to dense, narrowed and random decisions."""
    lines = [
        "| row | n | top-1, % (each run) | kept MACs | kept parameters | training MACs | "
        "seconds, fastest run | minus dense, points | minus narrowed, points | "
        "minus random, points |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows_of(records):
        lines.append(
            f"| {row.name}: {row.what} | {len(row.top1)} | {row.mean:.2f} "
            f"({', '.join(f'{value:.2f}' for value in row.top1)}) | {row.macs:.3f} | "
            f"{row.params:.3f} | {row.training:.2f} | "
            f"{row.seconds:.0f} ({row.seconds_ratio:.2f} x dense) | "
            f"{row.minus_dense} | {row.minus_narrowed} | {row.minus_random} |"
        )
    return "\n".join(lines)


def dynamic_table(records: Records) -> str:
    """Methods without a target: what the gates ask for each image beside what of it is static.

    Empty where there are none. Dynamic MACs are what skipping would save if it were free; no engine
    does it.
    """
    lines = [
        "", "",
        "| row | n | dynamic top-1, % (each run) | dynamic MACs | MACs foreseen | "
        "static top-1, % (each run) | static MACs | training MACs |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    found = {
        name: runs for name, runs in records.items() if "forecast_macs_ratio" in runs[0]["result"]
    }
    for name, runs in found.items():
        results = [run["result"] for run in runs]
        cells = [f"{name}: {runs[0]['what']}", str(len(runs)), each_of(results, "dynamic_top1")]
        cells += [
            f"{mean_of(results, f'{kind}_macs_ratio'):.3f}" for kind in ("dynamic", "forecast")
        ]
        cells += [each_of(results, "top1"), f"{mean_of(results, 'macs_ratio'):.3f}"]
        lines.append(f"| {' | '.join(cells)} | {mean_of(results, 'train_macs_ratio'):.2f} |")
    return "\n".join(lines) if found else ""


def _least(runs: list[Run]) -> float:
    """Seconds of the fastest run: machines are shared, and runs were stopped for other work."""
    return min((float(run["result"]["seconds"]) for run in runs), default=float("inf"))


def _mean(runs: list[Run], of: Callable[[Run], float]) -> float:
    return float(np.mean([of(run) for run in runs]))


def _top1(runs: list[Run]) -> list[float]:
    return [100 * run["result"]["top1"] for run in runs]


def _spent(run: Run) -> float:
    """MACs of a training for one image an epoch."""
    result = run["result"]
    return float(result["train_macs_ratio"] * result["dense_macs"] * run["config"]["epochs"])


def in_words(found: tuple[float, float, float] | None) -> str:
    """A difference with its interval, or nothing."""
    return "" if found is None else f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]"


def draw(records: Records, path: Path) -> None:
    """Every run a dot, accuracy against kept MACs; the field's points in a panel of their own."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3, 2]})
    whole = max(run["result"]["dense_macs"] for runs in records.values() for run in runs)
    markers = iter("oosD^vP*X<>hd" * 2)
    for name, runs in records.items():
        left.plot(
            [run["result"]["macs"] / whole for run in runs], _top1(runs), next(markers),
            color=_COLOURS[runs[0]["group"]], alpha=0.75, label=f"{name} (n = {len(runs)})",
            linestyle="none", markersize=6,
        )  # fmt: skip
    left.set(
        xlabel="kept MACs", ylabel="test top-1, %",
        title="ResNet-20 on CIFAR-10, 12 epochs: every run a dot",
    )  # fmt: skip
    left.legend(fontsize=8, frameon=False)
    for name, kept, lost in PUBLISHED:
        right.plot(kept, lost, "o", color=_COLOURS["published"])
        right.annotate(name, (kept, lost), textcoords="offset points", xytext=(5, 3), fontsize=7)
    right.invert_yaxis()
    right.set(
        xlabel="kept FLOPs", ylabel="points lost against its own dense network",
        title="Published: ResNet-56, 200 epochs and more",
    )  # fmt: skip
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
