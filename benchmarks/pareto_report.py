"""The study's table and picture, made from its records alone."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.pareto_settings import SETTINGS

TABLE, PICTURE = "pareto.md", "pareto.png"
_CONFIDENCE = 0.95
_COLOURS = {
    "dense": "#333333", "ours": "#c0392b", "narrowed": "#2c6fbb", "control": "#8a8a8a",
    "torch-pruning": "#2e8b57", "published": "#b8860b",
}  # fmt: skip

# The field's own figures, for orientation only: another network, other recipes, 200 epochs and
# more. ResNet-56 on CIFAR-10: share of the FLOPs that is left, points lost against its own dense
# network (shared reference papers.md, section D.2, which names each source).
PUBLISHED = (
    ("DepGraph", 0.469, -0.24), ("DepGraph", 0.389, -0.11), ("ResRep", 0.472, 0.0),
    ("C-SGD", 0.392, -0.05), ("GDP", 0.466, -0.07), ("HRank", 0.50, 0.09),
    ("polarization (Zhuang)", 0.53, -0.03), ("FTWT", 0.34, 1.03),
)  # fmt: skip

Records = dict[str, list[dict[str, Any]]]


def read_records(folder: Path) -> Records:
    """All records of a folder, by row as the settings have them, in the order of their seeds."""
    found: Records = defaultdict(list)
    for path in sorted(folder.glob("*-*.json")):
        record = json.loads(path.read_text())
        found[record["setting"]].append(record)
    order = [setting.name for setting in SETTINGS]
    return {name: found[name] for name in sorted(found, key=order.index)}


def write_report(folder: Path) -> str:
    """Write the table and the picture beside the records' folder; the table."""
    records = read_records(folder)
    if not records:
        raise SystemExit(f"error: no records in {folder.name}; make some with: run")
    table = table_of(records)
    (folder.parent / TABLE).write_text(table + "\n")
    draw(records, folder.parent / PICTURE)
    return table


def difference(ours: list[float], theirs: list[float]) -> tuple[float, float, float] | None:
    """Mean of ours minus mean of theirs with its Welch interval at 95 %; None below two runs."""
    if min(len(ours), len(theirs)) < 2:
        return None
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(_CONFIDENCE)
    return float(np.mean(ours) - np.mean(theirs)), float(interval.low), float(interval.high)


def table_of(records: Records) -> str:
    """One line a row in Markdown, its differences to dense and to the narrowed network."""
    lines = [
        "| row | n | top-1, % (each run) | kept MACs | kept parameters | training MACs | seconds | "
        "minus dense, points | minus narrowed, points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    dense, narrowed = (_top1(records.get(name, [])) for name in ("dense", "narrowed"))
    seconds = [record["result"]["seconds"] for record in records.get("dense", [])]
    for name, runs in records.items():
        top1 = _top1(runs)
        results = [run["result"] for run in runs]
        whole = max(result["dense_macs"] for found in records.values() for result in
                    (run["result"] for run in found))  # fmt: skip
        macs = np.mean([result["macs"] / whole for result in results])
        lines.append(
            f"| {name}: {runs[0]['what']} | {len(runs)} | {np.mean(top1):.2f} "
            f"({', '.join(f'{value:.2f}' for value in top1)}) | {macs:.3f} | "
            f"{_parameters(results, records):.3f} | {_training(runs, whole):.2f} | "
            f"{_ratio([r['seconds'] for r in results], seconds)} | "
            f"{_words(difference(top1, dense))} | {_words(difference(top1, narrowed))} |"
        )
    return "\n".join(lines)


def _top1(runs: list[dict[str, Any]]) -> list[float]:
    return [100 * run["result"]["top1"] for run in runs]


def _parameters(results: list[dict[str, Any]], records: Records) -> float:
    whole = max(run["result"]["dense_params"] for runs in records.values() for run in runs)
    return float(np.mean([result["params"] / whole for result in results]))


def _training(runs: list[dict[str, Any]], whole: int) -> float:
    """MACs of the training over those of the dense network for the recipe's epochs."""
    spent = [
        run["result"]["train_macs_ratio"] * run["result"]["dense_macs"] / whole
        * run["config"]["epochs"] / 12
        for run in runs
    ]  # fmt: skip
    return float(np.mean(spent))


def _ratio(seconds: list[float], dense: list[float]) -> str:
    text = f"{np.mean(seconds):.0f}"
    return f"{text} ({np.mean(seconds) / np.mean(dense):.2f} x dense)" if dense else text


def _words(found: tuple[float, float, float] | None) -> str:
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
