"""Why is a network with half of its MACs not faster? Three cases explained, layer by layer.

    python -m benchmarks.explained                  # about 2 minutes on two cores
    python -m benchmarks.explained --quick --out /tmp    # ResNet-20 alone, batch 2: a rehearsal
    python -m benchmarks.explained --table          # the table again, from the record

ResNet-20 (32x32, batch 64) keeps in each channel site a number of channels drawn at random, between
a quarter and three quarters, or so many that about half of the MACs stay; ResNet-50 (224x224, batch
1) is the unaligned cut of `benchmarks.resnet50_cuts`, at most half of its MACs. Random weights: of
these, time alone can be told. Cuts are certified in float64.
ONNX Runtime, float32, two threads.
"""

import io
import json
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

import polarprune
from benchmarks.records import describe_machine
from benchmarks.uniform_cuts import OurCuts
from polarprune_deploy import compare_latency, load_runner
from polarprune_deploy.environment import describe_environment
from polarprune_deploy.layers.explaining import Explainer
from polarprune_deploy.layers.explanation_tables import tell
from polarprune_export import write_onnx

RESULTS = Path(__file__).parent / "results"
RANDOM = {
    "ResNet-20, random numbers of channels, half of them": (0.25, 0.75),
    "ResNet-20, random numbers of channels, half of the MACs": (0.5, 0.9),
}
THREADS = 2
SEED = 0
COLUMNS = 130
SAMPLE_FIELDS = ("round", "position", "repetitions", "elapsed_ns")


def random_counts(net: nn.Module, images: Tensor, low: float, high: float) -> nn.Module:
    """Each channel site keeps a share of its units between the two, drawn at random."""
    gated = polarprune.attach_gates(net, images)
    generator = torch.Generator().manual_seed(SEED)
    decisions = {}
    for site in gated.sites:
        if site.kind == "channel":
            share = low + (high - low) * torch.rand(1, generator=generator).item()
            decisions[site.name] = torch.arange(site.units) < round(share * site.units)
    gated.set_decisions(decisions)
    small = polarprune.collapse(gated)
    polarprune.certify(gated, small, images)
    return small


def cases(quick: bool) -> list[tuple[str, nn.Module, nn.Module, Tensor, int]]:
    """Name, dense, pruned, two images, and the batch size."""
    torch.manual_seed(SEED)
    dense = polarprune.build_network("resnet20", num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    found = [
        (name, dense, random_counts(dense, images, *shares), images, 2 if quick else 64)
        for name, shares in RANDOM.items()
    ]
    if not quick:
        dense = polarprune.build_network("torchvision:resnet50", num_classes=1000).eval()
        images = torch.randn(2, 3, 224, 224)
        most = polarprune.count_macs(dense, images) // 2
        pruned = OurCuts(dense, images).channels(1, most).network.eval()
        found.append(("ResNet-50, one share of the channels, unaligned", dense, pruned, images, 1))
    return found


def explain(
    dense: nn.Module, pruned: nn.Module, images: Tensor, batch: int
) -> tuple[dict[str, Any], str]:
    """The row of the bench with its explanation, and the words for people."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runners = []
        for name, network in (("dense", dense), ("pruned", pruned)):
            file = Path(folder) / f"{name}.onnx"
            write_onnx(network, file, images)
            runners.append(stack.enter_context(closing(load_runner(file, threads=THREADS))))
        (comparison,) = compare_latency(runners, batch=batch, seed=SEED)
        explanation = Explainer().explain(runners[0], runners[1], batch=batch, seed=SEED)
    console = Console(width=COLUMNS, file=io.StringIO(), highlight=False, markup=False)
    with console.capture() as capture:
        console.print(*tell(explanation), sep="\n")
    words = "\n".join(line.rstrip() for line in capture.get().splitlines())
    found = {
        **comparison.conclusions(),
        "explanation": explanation.as_json(),
        "sample_fields": ["network", *SAMPLE_FIELDS],
        "samples": [
            [s.network.partition("_")[0], s.round, s.position, s.repetitions, s.elapsed_ns]
            for s in comparison.samples
        ],
    }
    return found, words


def run(quick: bool) -> dict[str, Any]:
    """Explain every case."""
    rows = []
    for name, dense, pruned, images, batch in cases(quick):
        found, words = explain(dense, pruned, images, batch)
        rows.append({"name": name, **found, "words": words})
    return {
        "what": "three pruned networks of random weights (latency only) explained; ONNX Runtime "
        f"CPU, fp32, {THREADS} threads. Profiles are kept as medians.",
        "seed": SEED,
        "machine": {**describe_environment(), **describe_machine()},
        "rows": rows,
    }


def table(record: dict[str, Any]) -> str:
    """What `bench --explain` says to people, below the verdict of the paired samples."""
    parts = [
        "What `polarprune bench --explain` says, as `benchmarks/explained.py` recorded it: "
        f"{record['machine']['cpu']}, {THREADS} threads.\n"
    ]
    for row in record["rows"]:
        parts.append(
            f"## {row['name']}, batch {row['batch']}\n\n"
            f"{row['against_ms']:.3f} to {row['ms']:.3f} ms, {row['speedup']:.3f} times as fast "
            f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}], {row['verdict'].replace('_', ' ')} "
            f"(n = {row['rounds']} paired rounds).\n\n```text\n{row['words']}\n```\n"
        )
    return "\n".join(parts)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A rehearsal.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
    only_table: Annotated[bool, typer.Option("--table", help="Measure nothing.")] = False,
) -> None:
    """Explain, write record and table."""
    path = out / "explained.json"
    if not only_table:
        path.write_text(json.dumps(run(quick), allow_nan=False) + "\n")
    path.with_suffix(".md").write_text(table(json.loads(path.read_text())))


if __name__ == "__main__":
    typer.run(main)
