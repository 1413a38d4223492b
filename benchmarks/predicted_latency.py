"""How well does a latency table foresee the latency of networks that it was not made from?

    python -m benchmarks.predicted_latency                 # some eight minutes on two quiet cores
    python -m benchmarks.predicted_latency --table t.json  # with a table made before

A table of ResNet-50 (`polarprune profile`), then networks of random decisions: every site keeps a
share of its own between a tenth and all, each block stays with probability 0.8; one set with counts
as they fall, one aligned to 8. All are timed in turn in ONNX Runtime. Beside the table stands a
straight line in MACs, fitted on the same whole networks as the table's factors and constant.
Weights are random: latency only.
"""

import json
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import torchvision
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.records import describe_machine
from polarprune import GatedNetwork, attach_gates
from polarprune.latency_cost import LatencyCircuit
from polarprune.latency_table import LatencyTable, read_latency_table
from polarprune_deploy.layers.layer_timers import LayerTimer, choose_timer
from polarprune_deploy.layers.profiling import ProfileRequest, profile_network
from polarprune_deploy.layers.whole_networks import fit_line, median_latencies

RESULTS = Path(__file__).parent / "results"
LEAST_SHARE, BLOCK_STAYS = 0.1, 0.8
ALIGNMENTS = (1, 8)


def random_decisions(
    gated: GatedNetwork, align: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Every site a share of its own, its units drawn at random."""
    found = {}
    for site in gated.sites:
        draw = float(torch.rand((), generator=generator))
        if site.kind == "block":
            found[site.name] = torch.tensor([draw < BLOCK_STAYS])
            continue
        count = max(1, round((LEAST_SHARE + (1 - LEAST_SHARE) * draw) * site.units))
        count = min(site.units, -(-count // align) * align)
        order = torch.randperm(site.units, generator=generator)
        opened = torch.zeros(site.units, dtype=torch.bool)
        opened[order[:count]] = True
        found[site.name] = opened
    return found


def line_in_macs(table: LatencyTable) -> tuple[float, float]:
    """(milliseconds a MAC, constant) of the whole networks that the table was calibrated on."""
    return fit_line([c["macs"] for c in table.calibration], [c["ms"] for c in table.calibration])


def measure(
    gated: GatedNetwork, table: LatencyTable, n: int, seed: int, timer: LayerTimer | None = None
) -> list[dict[str, Any]]:
    """One row a network.

    Args:
        n: random networks of each alignment.
        timer: what the table was measured with; None is ONNX Runtime with the table's threads.
    """
    timer = timer or choose_timer("onnxruntime", "cpu", threads=table.head["threads"])
    circuit = LatencyCircuit(gated.analysis, gated.circuit, table)
    a_mac, constant = line_in_macs(table)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for align in ALIGNMENTS:
        drawn = [random_decisions(gated, align, generator) for _ in range(n)]
        measured = median_latencies(
            gated, drawn, timer, batch=table.head["batch"], seed=seed, progress=lambda *_: None
        )
        for decisions, ms in zip(drawn, measured, strict=True):
            in_order = [decisions[site.name] for site in gated.sites]
            macs = gated.macs_of(in_order)
            rows.append(
                {
                    "align": align, "macs_ratio": macs / gated.circuit.dense_macs, "ms": ms,
                    "table_ms": circuit.exact_ms(in_order), "line_ms": a_mac * macs + constant,
                }
            )  # fmt: skip
    return rows


def errors(rows: list[dict[str, Any]], which: str) -> dict[str, float]:
    """Median and worst of |predicted / measured - 1|."""
    found = [abs(row[which] / row["ms"] - 1) for row in rows]
    return {"median": median(found), "worst": max(found)}


def main(
    n: Annotated[int, typer.Option(help="random networks of each alignment")] = 20,
    seed: Annotated[int, typer.Option(help="of weights, decisions and orders")] = 0,
    threads: Annotated[int, typer.Option(help="inside one operator")] = 2,
    table: Annotated[Path | None, typer.Option(help="made before, by this program")] = None,
    keep_table: Annotated[Path | None, typer.Option(help="write the table here")] = None,
    records: Annotated[Path, typer.Option(help="folder")] = RESULTS,
) -> None:
    """Measure, write the record, print the table."""
    torch.manual_seed(seed)
    net = torchvision.models.resnet50(weights=None).eval()
    gated = attach_gates(net, torch.zeros(1, 3, 224, 224))
    if table is None:
        head = {"model": "torchvision:resnet50", "input_shape": [3, 224, 224]}
        found = profile_network(gated, head, ProfileRequest(threads=threads, seed=seed))
    else:
        found = read_latency_table(table)
    if keep_table is not None:
        found.write(keep_table)
    rows = measure(gated, found, n, seed)
    summary = {
        f"align {align}": {
            which: errors([row for row in rows if row["align"] == align], f"{which}_ms")
            for which in ("table", "line")
        }
        for align in ALIGNMENTS
    }
    record = {
        "what": "predicted against measured latency of random cuts of ResNet-50, latency only: "
        "random weights; host latency, warm caches, batch 1, ONNX Runtime, CPU, not a GPU claim",
        "n": n,
        "seed": seed,
        "machine": describe_machine(),
        "table": {
            key: found.as_dict()[key]
            for key in ("model", "input_shape", "batch", "threads", "factor", "off_factor",
                        "fixed_ms", "multiples", "calibration")
        },
        "errors": summary,
        "rows": rows,
    }  # fmt: skip
    text = json.dumps(record, indent=1)
    (records / "predicted_latency.json").write_text(text + "\n")
    show = Table(title=record["what"])
    for column in ("networks", "n", "table, median", "worst", "line in MACs, median", "worst"):
        show.add_column(column)
    for name, each in summary.items():
        cells = [each[w][k] for w in ("table", "line") for k in ("median", "worst")]
        show.add_row(name, str(n), *(f"{cell:.1%}" for cell in cells))
    Console(width=120).print(show)


if __name__ == "__main__":
    typer.run(main)
