"""How much faster is a ResNet-50 of half of the MACs on a CPU? Our cuts and Torch-Pruning's.

    python -m benchmarks.resnet50_cuts                      # about 3 minutes on two cores
    python -m benchmarks.resnet50_cuts --network resnet18 --image-size 64 --record rehearsal.json
    python -m benchmarks.resnet50_cuts --table              # the table again, from the record

Latency only: random weights. One share for all channel sites of a cut, the largest that keeps at
most the target (`benchmarks.uniform_cuts`); every network goes through `write_onnx`, batch norms
folded, and is held against torch in float64; our cuts are certified in float64 before that. ONNX
Runtime, float32, batch 1, two threads, all in one paired run with a control each.

Equal MACs are not quite reached where the share comes in coarse steps; so two more rows are
Torch-Pruning's cut at our share, and ours with no more MACs than Torch-Pruning's coarsest cut has.
A third one shows what alignment alone does: the unaligned cut with up to three more units a site.
Beside each row stands what ONNX Runtime multiplies once it has filled up its blocks of channels
(`benchmarks.executed_graph`).

Needs torch-pruning.
"""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, astuple
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import torchvision
import typer
from torch import Tensor, nn

from benchmarks.executed_graph import read_executed
from benchmarks.recorded_runs import write_table
from benchmarks.records import describe_machine
from benchmarks.uniform_cuts import Made, OurCuts, TorchPruningCuts
from polarprune import count_macs
from polarprune_deploy import compare_latency, load_runner
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.environment import describe_environment
from polarprune_deploy.statistics import corrected_confidence, paired_ratio
from polarprune_export import check_parity, write_onnx

RECORD = Path(__file__).parent / "results" / "resnet50_cuts.json"
OURS = {1: "ours, unaligned", **{m: f"ours, aligned to {m}" for m in (4, 8, 16, 32)}}
OPENED = "ours, unaligned, then opened up to multiples of 4"
BLOCKS = "ours, blocks"
OURS_AT_THEIRS = "ours, aligned to 16, at most the MACs of Torch-Pruning rounded to 16"
THEIRS = {
    None: "Torch-Pruning, unaligned",
    8: "Torch-Pruning, rounded to 8",
    16: "Torch-Pruning, rounded to 16",
}
THEIRS_AT_OURS = "Torch-Pruning, rounded to 8, at our share"
RIVALS = (
    (OURS[1], THEIRS[None]),
    (OURS[8], THEIRS[8]),
    (OURS[8], THEIRS_AT_OURS),
    (OURS_AT_THEIRS, THEIRS[16]),
)
THREADS = 2
SEED = 0


def make_networks(net: nn.Module, images: Tensor, target: float) -> dict[str, Made]:
    """Dense first, then every cut."""
    dense = count_macs(net, images)
    most = int(target * dense)
    made = {"dense": Made(net, dense, None, {})}
    ours, theirs = OurCuts(net, images), TorchPruningCuts(net, images)
    for multiple, name in OURS.items():
        made[name] = ours.channels(multiple, most)
    made[OPENED] = ours.at_share(4, _share(made[OURS[1]]))
    made[BLOCKS] = ours.blocks(most)
    for round_to, name in THEIRS.items():
        made[name] = theirs.channels(round_to, most)
    made[THEIRS_AT_OURS] = theirs.at_share(8, _share(made[OURS[8]]))
    made[OURS_AT_THEIRS] = ours.channels(16, made[THEIRS[16]].macs)
    return made


def _share(made: Made) -> float:
    assert made.share is not None
    return made.share


def export(made: Made, path: Path, images: Tensor, dense_macs: int) -> dict[str, Any]:
    """Write the file, hold it against torch, and say what is in it."""
    report = write_onnx(made.network, path, images)
    (link,) = check_parity(made.network, path, real_images=None).links
    executed = read_executed(path)
    return {
        "macs": made.macs,
        "macs_ratio": made.macs / dense_macs,
        "share": made.share,
        **made.facts,
        "parity": asdict(link),
        "operators": report.operators,
        "bytes": report.bytes,
        "executed": {**executed.as_dict(), "macs_ratio": executed.macs / dense_macs},
    }


def measure(
    files: dict[str, Path], rounds: int
) -> tuple[list[Comparison], dict[str, dict[str, float]]]:
    """All against dense in one run, and ours against theirs in the very same rounds."""
    family = len(files) - 1 + len(RIVALS)
    with ExitStack() as stack:
        runners = [
            stack.enter_context(closing(load_runner(path, threads=THREADS)))
            for path in files.values()
        ]
        found = compare_latency(runners, batch=1, rounds=rounds, seed=SEED, family=family)
    times = {
        name: [s.run_ms for s in comparison.samples if s.network.startswith("candidate")]
        for name, comparison in zip(list(files)[1:], found, strict=True)
    }
    confidence = corrected_confidence(family)
    rivals = {
        f"{ours} / {theirs}": paired_ratio(
            times[theirs], times[ours], confidence=confidence
        ).as_json()
        for ours, theirs in RIVALS
    }
    return found, rivals


def row_of(name: str, comparison: Comparison, facts: dict[str, Any]) -> dict[str, Any]:
    """A row of the record; samples of all networks stand apart, once."""
    return {"name": name, **facts, "latency": comparison.conclusions()}


def samples_of(names: Sequence[str], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Every timed block: per network its (round, position, repetitions, elapsed_ns)."""
    samples: dict[str, list[tuple[int, ...]]] = {}
    for name, comparison in zip(names, comparisons, strict=True):
        for sample in comparison.samples:
            role = sample.network.partition("_")[0]
            key = {"against": "dense", "candidate": name, "control": f"{name}, control"}[role]
            _, number, position, _, repetitions, elapsed = astuple(sample)
            samples.setdefault(key, []).append((number, position, repetitions, elapsed))
    # Dense came with every comparison.
    return {key: sorted(set(blocks)) for key, blocks in samples.items()}


def table_rows(record: dict[str, Any]) -> list[list[str]]:
    """Dense and the cuts, in words."""
    dense = record["dense"]
    rows = [
        ["dense", "", "100 %", f"{100 * dense['executed']['macs_ratio']:.1f} %",
         _blocked(dense), f"{record['rows'][0]['latency']['against_ms']:.2f}", "", "", ""]
    ]  # fmt: skip
    for row in record["rows"]:
        found = row["latency"]
        share = "" if row["share"] is None else f"{row['share']:.3f}"
        rows.append(
            [row["name"], share, f"{100 * row['macs_ratio']:.1f} %",
             f"{100 * row['executed']['macs_ratio']:.1f} %", _blocked(row),
             f"{found['ms']:.2f}", _interval(found), _interval(found["control"]),
             found["verdict"].replace("_", " ")]
        )  # fmt: skip
    return rows


def _blocked(facts: dict[str, Any]) -> str:
    executed = facts["executed"]
    return f"{executed['blocked_convolutions']} of {executed['convolutions']}"


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['speedup']:.3f} [{ratio['ci_low']:.3f}, {ratio['ci_high']:.3f}]"


COLUMNS = [
    "network", "share", "kept MACs", "with filled blocks", "convolutions in blocks", "ms",
    "dense over it", "control", "verdict",
]  # fmt: skip


def write(record: dict[str, Any], path: Path) -> None:
    """One entry a line, and one line a row and a network's samples."""

    def text(value: Any) -> str:
        if isinstance(value, list):
            return "[\n" + ",\n".join(json.dumps(item, allow_nan=False) for item in value) + "\n]"
        return json.dumps(value, allow_nan=False)

    entries = [f"{json.dumps(key)}: {text(value)}" for key, value in record.items()]
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n")


def run(network: str, image_size: int, target: float, rounds: int) -> dict[str, Any]:
    """Cut, export, check, time."""
    torch.manual_seed(SEED)
    net: nn.Module = getattr(torchvision.models, network)(weights=None).eval()
    images = torch.randn(2, 3, image_size, image_size)
    made = make_networks(net, images, target)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{place}.onnx" for place, name in enumerate(made)}
        facts = {
            name: export(one, files[name], images, made["dense"].macs) for name, one in made.items()
        }
        comparisons, rivals = measure(files, rounds)
    names = list(files)[1:]
    return {
        "what": f"{network} of random weights (latency only), {image_size}x{image_size}, at most "
        f"{target:g} of the MACs, ONNX Runtime CPU, fp32, batch 1, {THREADS} threads, one run",
        "n": rounds,
        "seed": SEED,
        "target": target,
        "units": "the first ones of each site (ours), the largest in magnitude (Torch-Pruning)",
        "machine": {
            **describe_environment(),
            **describe_machine(),
            "torch_pruning": metadata.version("torch-pruning"),
        },
        "dense": facts["dense"],
        "ours_over_theirs": rivals,
        "rows": [
            row_of(name, comparison, facts[name])
            for name, comparison in zip(names, comparisons, strict=True)
        ],
        "sample_fields": ["round", "position", "repetitions", "elapsed_ns"],
        "samples": samples_of(names, comparisons),
    }


def main(
    network: Annotated[str, typer.Option(help="A torchvision network.")] = "resnet50",
    image_size: Annotated[int, typer.Option(help="Pixels a side.")] = 224,
    target: Annotated[float, typer.Option(help="Share of the MACs that may stay.")] = 0.5,
    rounds: Annotated[int, typer.Option(help="Paired rounds, at least 40.")] = 80,
    record: Annotated[Path, typer.Option(help="Where it is written.")] = RECORD,
    table: Annotated[bool, typer.Option("--table", help="Measure nothing.")] = False,
) -> None:
    """Measure, write record and table."""
    if not table:
        write(run(network, image_size, target, rounds), record)
    found = json.loads(record.read_text())
    write_table(record.with_suffix(".md"), COLUMNS, table_rows(found))
    for pair, ratio in found["ours_over_theirs"].items():
        print(f"{pair}: {_interval(ratio)}")


if __name__ == "__main__":
    typer.run(main)
