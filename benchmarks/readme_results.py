"""The README's result table and the page of all results, made from the records.

python -m benchmarks.readme_results             # writes them into README.md and docs/results.md
"""

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.graph_results import graph_core_line
from benchmarks.latency_target import ROWS as LATENCY_ROWS
from benchmarks.pareto.settings import EPOCHS
from benchmarks.recorded_runs import mean_of, read_results
from benchmarks.records import load_record
from benchmarks.serving.summary import words as serving_words
from benchmarks.unet_membrane import TARGETS

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PAGE = HERE.parent / "docs" / "results.md"
UNIFORM_CUTS = HERE / "results" / "gpu" / "uniform_cuts.jsonl"
BLOCK = re.compile(r"(<!-- results:begin -->\n).*?(<!-- results:end -->)", re.DOTALL)


def machine(record: dict[str, Any]) -> str:
    """Where a record was made, in words."""
    found = record["machine"]
    return (
        f"{found['cores']} cores of {found['cpu']} ({found['capability']}), torch {found['torch']}"
    )


def timed(row: dict[str, Any]) -> str:
    """A paired ratio with its interval and verdict."""
    verdict = row["verdict"].replace("_", " ")
    return f"{row['speedup']:.2f} x [{row['ci_low']:.2f}, {row['ci_high']:.2f}], {verdict}"


def headline_table() -> list[str]:
    """What was bounded in training, what that did to accuracy, and what it did to the time."""
    record = load_record("latency_target")
    dense = next(row for row in load_record("pareto")["rows"] if row["name"] == "dense")
    head = record["table"]
    lines = [
        f"ResNet-20 trained on CIFAR-10 in one pass of {EPOCHS} epochs (test images used once, on "
        "the last epoch), then timed beside the dense network in ONNX Runtime, paired, at the "
        f"batch of {head['batch']} and the {head['threads']} threads that `polarprune profile` had "
        f"measured its table for; {machine(record)}; [every run]"
        "(benchmarks/results/latency_target.md):",
        "",
        "| bounded in training | n | top-1 | kept MACs | latency foreseen "
        "| measured: times as fast |",
        "|---|---|---|---|---|---|",
        f"| nothing: dense | {len(dense['top1'])} | {dense['mean']:.2f} % | 100 % | | 1 |",
    ]
    for row in LATENCY_ROWS:
        timed_runs = [c for c in record["comparisons"] if c["setting"] == row.name]
        results = [
            json.loads(
                (HERE / "results/latency_target" / f"{row.name}-{c['seed']}.json").read_text()
            )
            for c in timed_runs
        ]
        found = [result["result"] for result in results]
        foreseen = [f["latency_ratio"] for f in found if f["latency_ratio"] is not None]
        words = f"{100 * fmean(foreseen):.0f} % of dense" if foreseen else ""
        fast = ", ".join(
            f"{c['speedup']:.2f} [{c['ci_low']:.2f}, {c['ci_high']:.2f}]" for c in timed_runs
        )
        lines.append(
            f"| {row.what} | {len(found)} | {100 * mean_of(found, 'top1'):.2f} % "
            f"| {100 * mean_of(found, 'macs_ratio'):.0f} % | {words} | {fast} |"
        )
    return lines


def explained_line() -> list[str]:
    """How well a table foresees, and what `bench --explain` is for."""
    found = load_record("predicted_latency")
    names = {"align 1": "counts as they fall", "align 8": "multiples of 8"}
    words = "; ".join(
        f"{names[name]}: median error {100 * each['table']['median']:.1f} %, "
        f"worst {100 * each['table']['worst']:.0f} % "
        f"(a straight line in MACs: {100 * each['line']['median']:.0f} %, "
        f"{100 * each['line']['worst']:.0f} %)"
        for name, each in found["errors"].items()
    )
    return [
        f"Latency that such a table foresees for {found['n']} random cuts of ResNet-50 at batch 1: "
        f"{words}. `bench --explain` says why a network is not faster, and what would pay: "
        "[real ones](benchmarks/results/explained.md)."
    ]


def demo_line() -> list[str]:
    """Dense against pruned, as `make demo` shows it."""
    demo = load_record("demo")
    dense = demo["dense"]
    rows = ", ".join(f"at batch {row['batch']} {timed(row)}" for row in demo["rows"])
    return [
        f"`make demo`: ResNet-20 on scikit-learn's digits at 16x16, one seed: top-1 (n = "
        f"{demo['test_images']}) {100 * dense['top1']:.2f} % dense, {100 * demo['top1']:.2f} % "
        f"with {100 * demo['macs_ratio']:.1f} % of the MACs; {rows}. Its settings were chosen over "
        "a dozen runs or more by looking at these same test images and timings: a demonstration, "
        "not an estimate."
    ]


def alignment_line() -> list[str]:
    """Latency against the multiple that kept channel counts are rounded up to."""
    runs = load_record("alignment")["runs"]
    found = ", ".join(
        f"{run['align']}: {timed({row['batch']: row for row in run['rows']}[64])} "
        f"({100 * run['result']['macs_ratio']:.0f} % of the MACs kept)"
        for run in runs
    )
    return [
        f"Half of the MACs is not half of the time: at batch 64, trained with `--align` {found}. "
        f"Each is another network, one training each. {resnet50_cuts()} {gpu_cuts()}",
    ]


def resnet50_cuts() -> str:
    """What a cut to half of the MACs does to ResNet-50 on a CPU, ours and Torch-Pruning's."""
    record = load_record("resnet50_cuts")
    rows = {row["name"]: row["latency"] for row in record["rows"]}

    def words(names: dict[str, str]) -> str:
        return ", ".join(f"{what} {timed(rows[name])}" for name, what in names.items())

    ours = {
        "ours, unaligned": "unaligned channels",
        "ours, aligned to 8": "aligned to 8",
        "ours, aligned to 32": "to 32",
        "ours, blocks": "blocks",
    }
    theirs = {
        "Torch-Pruning, unaligned": "unaligned",
        "Torch-Pruning, rounded to 8": "rounded to 8",
    }
    return (
        "ResNet-50 of random weights on this CPU (latency only: 224x224, batch 1, two threads, one "
        "share for all channels, at most half of the MACs): "
        f"{words(ours)}; Torch-Pruning {words(theirs)} "
        "([all](benchmarks/results/resnet50_cuts.md))."
    )


def gpu_cuts() -> str:
    """What cuts do to ResNet-50 on a GPU, by what is cut; of the newer record if there is one."""
    if UNIFORM_CUTS.exists():
        return uniform_gpu_cuts(UNIFORM_CUTS)
    record = load_record("gpu/latency")
    rows = [row for row in record["rows"] if row["network"] == "resnet50"]
    found = "; ".join(
        f"{cut} ({100 * record['networks']['resnet50'][cut]['macs_ratio']:.0f} % of the MACs kept) "
        + " and ".join(timed(row) for row in rows if row["cut"] == cut)
        for cut in ("channels", "aligned channels", "blocks")
    )
    most = max(row["control"]["speedup"] for row in rows)
    return (
        f"{record['machine']['gpu']}, one process, ResNet-50 of fresh weights in fp16, half of its "
        f"units cut, batch 1 and 64: {found}. Inconclusive: against itself a network gave up to "
        f"{most:.3f} there."
    )


def uniform_gpu_cuts(path: Path) -> str:
    """ResNet-50 at half of its MACs, one share for all channels, from a record of benchmarks.gpu.

    Raises:
        ValueError: the record has no such rows, or is a rehearsal's.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    wanted = {"network": "resnet50", "kept": 0.5, "precision": "fp16", "mode": "graph"}
    cells = {
        line["batch"]: {row["cut"]: row for row in line["rows"]}
        for line in lines
        if line["kind"] == "cell"
        and "failed" not in line
        and all(line[key] == value for key, value in wanted.items())
    }
    if lines[0]["dry_run"] or not {1, 64} <= set(cells):
        raise ValueError(f"{path.name} has no measured ResNet-50 at half of its MACs")
    cuts = {
        "channels": "unaligned channels", "channels aligned to 8": "aligned to 8",
        "channels aligned to 32": "to 32", "blocks": "blocks",
    }  # fmt: skip
    found = "; ".join(
        f"{what} " + " and ".join(_timed_or_not(cells[batch][cut]) for batch in (1, 64))
        for cut, what in cuts.items()
    )
    return (
        f"{lines[0]['device']}, ResNet-50 of random weights (latency only) in fp16, one CUDA "
        "graph, one share for all channels, at most half of the MACs, host latency, batch 1 and "
        f"64: {found} ([record](benchmarks/results/gpu/{path.name}))."
    )


def _timed_or_not(row: dict[str, Any]) -> str:
    return "not timed" if "not_timed" in row else timed(row)


def study_table() -> list[str]:
    """One pass on CIFAR-10 beside dense, narrowed and Torch-Pruning, all with one recipe."""
    rows = {row["name"]: row for row in load_record("pareto")["rows"]}
    rivals = [row for row in rows.values() if row["group"] == "torch-pruning"]
    best = max(rivals, key=lambda row: row["mean"], default={"name": ""})["name"]
    shown = (
        "dense", "narrowed", "narrowed-longer", best, "random",
        "ours", "relaxation", "mask-predictor",
    )  # fmt: skip
    lines = [
        "ResNet-20 on all of CIFAR-10: 12 epochs, one recipe for all, test images used once, on "
        "the last epoch; [every row and run](benchmarks/results/pareto.md), "
        "[picture](benchmarks/results/pareto.png). Of four ways to use Torch-Pruning the best on "
        "these images is shown. Differences in points with their 95 % interval; wall clock "
        "against dense, on a shared machine. " + dynamic_words(),
        "",
        "| | n | top-1 | kept MACs | training MACs | wall clock, fastest run | minus narrowed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (rows[name] for name in shown if name in rows):
        lines.append(
            f"| {row['what']} | {len(row['top1'])} | {row['mean']:.2f} % | "
            f"{100 * row['macs']:.0f} % | {100 * row['training']:.0f} % | "
            f"{row['seconds_ratio']:.2f} | {row['minus_narrowed']} |"
        )
    return lines


def dynamic_words() -> str:
    """What a mask predictor gives where it decides for each image."""
    found = [
        json.loads(path.read_text())["result"]
        for path in sorted((HERE / "results" / "pareto").glob("mask-predictor-?.json"))
    ]
    top1, macs = mean_of(found, "dynamic_top1"), mean_of(found, "dynamic_macs_ratio")
    return (
        f"Deciding for each image, mask prediction has {100 * top1:.2f} % at "
        f"{100 * macs:.0f} % of the MACs; what is exported is what stays "
        "closed for nearly all images."
    )


def real_images_line() -> list[str]:
    """Two more networks with weights that mean something."""
    return [" ".join([real_resnet18(), segmentation(), resnet56()])]


def segmentation() -> str:
    """A U-Net pruned by relaxation, beside its own dense runs."""
    found = read_results(HERE / "results" / "unet", TARGETS)
    parts = [
        f"{100 * mean_of(found[row], 'macs_ratio'):.0f} %: "
        f"{100 * mean_of(found[row], 'dice'):.2f} % (n = {len(found[row])})"
        for row in TARGETS
        if row in found
    ]
    return (
        "U-Net (width 16, depth 4) on electron microscopy images, relaxation, Dice on 6 held-out "
        f"images at kept MACs of {'; '.join(parts)}; [table](benchmarks/results/unet.md), "
        "[picture](benchmarks/results/unet.png)."
    )


def real_resnet18() -> str:
    """The ResNet-18 of the real width, pruned by relaxation on a GPU."""
    rows = {
        "dense": "dense",
        "macs-0.5": "half of the MACs",
        "macs-0.25": "a quarter of the MACs",
        "params-0.13": "13 % of the parameters",
    }
    found = read_results(HERE / "results" / "gpu" / "relaxed_resnet18", rows)
    parts = [
        f"{what} {100 * mean_of(found[row], 'top1'):.2f} % (n = {len(found[row])})"
        for row, what in rows.items()
    ]
    return (
        "ResNet-18 on CIFAR-10 for 12 epochs on an H200, relaxation: "
        f"{', '.join(parts)}; [table](benchmarks/results/gpu/relaxed_resnet18.md)."
    )


def resnet56() -> str:
    """The published network through our exporter, and exact cuts of it."""
    record = load_record("resnet56_export")
    worst = max(cut["max_rel_error"] for cut in record["random_cuts"])
    lower = ", ".join(
        f"{name} {100 * load_record(f'precisions/resnet56.dense.{name}-0')['result']['top1']:.2f} %"
        for name in ("fp16", "bf16", "int8")
    )
    return (
        f"Published ResNet-56 weights (CIFAR-10, option-A shortcuts) exported by us: "
        f"{100 * record['top1']:.2f} % of {record['test_images']:,} test images in ONNX Runtime "
        f"(published: {100 * record['published_top1']:.2f} %); {lower} "
        "([table](benchmarks/results/precisions.md)). "
        f"{len(record['random_cuts'])} cuts of it at random decisions, on real images: largest "
        f"relative error {worst:.0e} in float64."
    )


def serving_line() -> list[str]:
    """What the server leaves of a network's speed."""
    return [serving_words()]


def narrower_line() -> str:
    """What the simplest rival makes of the same MACs, which is not flattering."""
    rows = {row["name"]: row for row in load_record("pareto")["rows"]}
    words = ", ".join(
        f"{rows[name]['what']} {rows[name]['minus_narrowed']}" for name in ("ours", "relaxation")
    )
    return (
        "At half of the MACs one pass is about as accurate as a uniformly narrower network trained "
        f"for as many epochs: points above it (95 %): {words}."
    )


def results_block() -> str:
    """Everything between the README's result marks."""
    more = [
        "[All results](docs/results.md): other ways to a smaller network beside ours, real images, "
        "segmentation, GPUs, how exact and how fast the cutting is, the server, and what did not "
        "work out."
    ]
    lines = [*headline_table(), "", narrower_line(), "", *demo_line(), "", *more]
    return "\n".join(lines) + "\n"


SECTIONS = {
    "Latency": (headline_table, explained_line, alignment_line),
    "Other ways to a smaller network": (study_table,),
    "Real images, segmentation, a GPU": (real_images_line,),
    "How exact, how fast": (graph_core_line,),
    "Serving": (serving_line,),
    "The demo": (demo_line,),
}


def results_page() -> str:
    """All results in words, with links to the records."""
    lines = ["# Results", "", "Written by `python -m benchmarks.readme_results`, from the records."]
    for title, parts in SECTIONS.items():
        lines += ["", f"## {title}"]
        for part in parts:
            lines += ["", *part()]
    return "\n".join(lines).replace("](benchmarks/", "](../benchmarks/") + "\n"


def main() -> None:
    """Write both."""
    text = README.read_text()
    README.write_text(BLOCK.sub(lambda m: m.group(1) + results_block() + m.group(2), text))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(results_page())


if __name__ == "__main__":
    main()
