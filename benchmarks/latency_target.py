"""Is the network that was trained with a latency table faster, at equal accuracy, than with MACs?

    export OMP_NUM_THREADS=1
    polarprune profile resnet20 --batch 64 --threads 2 --out FOLDER/table.json     # quiet machine
    python -m benchmarks.latency_target run --data TREE --table FOLDER/table.json --work FOLDER
    python -m benchmarks.latency_target time --table FOLDER/table.json --work FOLDER  # quiet too
    python -m benchmarks.latency_target report

ResNet-20 on CIFAR-10, the recipe of benchmarks/pareto.py. Rows are bound by MACs (channel counts as
they fall, or in the multiple that the table favours) or by the latency that the table predicts;
accuracy is that of the last epoch. `time` measures the trained networks beside their dense one in
ONNX Runtime, all in one paired run for each seed; what training saw was only the table.

TREE is a class-folder tree of CIFAR-10. A run that was stopped goes on from its last checkpoint.
"""

import json
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from benchmarks.pareto.settings import BATCH_SIZE, EPOCHS, NETWORK
from benchmarks.recorded_runs import Record, record_missing, recorded_run, top1_of
from benchmarks.records import describe_machine
from polarprune.latency_table import read_latency_table
from polarprune.runs.run_folder import RUN_FILE, RunFolder
from polarprune.runs.train_config import TrainConfig
from polarprune_deploy.backends.loading import load_runner
from polarprune_deploy.latency import MIN_ROUNDS, compare_latency
from polarprune_export import write_onnx

RESULTS = Path(__file__).parent / "results"
RECORDS = RESULTS / "latency_target"
TIMES = RESULTS / "latency_target.json"
TABLE = RESULTS / "latency_target.md"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass(frozen=True)
class Row:
    """One way to bound the network.

    Attributes:
        latency: share of the dense latency; None where MACs are bound.
        macs: share of the dense MACs.
        align: None leaves the choice to the table.
    """

    name: str
    what: str
    macs: float | None = None
    latency: float | None = None
    align: int | None = 1


ROWS = (
    Row("macs-0.5", "half of the MACs, channel counts as they fall", macs=0.5),
    Row("macs-0.5-align-8", "half of the MACs, in multiples of 8", macs=0.5, align=8),
    Row("latency-0.7", "0.7 of the predicted latency", latency=0.7, align=None),
    Row("latency-0.6", "0.6 of the predicted latency", latency=0.6, align=None),
    Row("latency-0.5", "0.5 of the predicted latency", latency=0.5, align=None),
)


@app.command()
def run(
    data: Annotated[str, typer.Option(help="A class-folder tree, or digits for a rehearsal.")],
    table: Annotated[Path, typer.Option(help="What polarprune profile wrote for ResNet-20.")],
    work: Annotated[Path, typer.Option(help="Where run folders are kept between sessions.")],
    only: Annotated[str, typer.Option(help="Names of rows, with commas.")] = "",
    seeds: Annotated[int, typer.Option(help="Runs a row.")] = 2,
    epochs: Annotated[int, typer.Option(help="Of the recipe.")] = EPOCHS,
    records: Annotated[Path, typer.Option(help="Folder of the records.")] = RECORDS,
    commit: Annotated[bool, typer.Option(help="Commit every record.")] = False,
) -> None:
    """Train what is not recorded yet."""
    rows = {row.name: row for row in ROWS}
    names = only.split(",") if only else list(rows)

    def make(name: str, seed: int) -> Record:
        row, out = rows[name], work / f"{name}-{seed}"
        bound: dict[str, Any] = {"target": row.macs}
        if row.latency is not None:
            bound = {"target_latency": row.latency, "latency_table": table}
        config = TrainConfig(
            model=NETWORK, data=data, out=out, seed=seed, epochs=epochs, batch_size=BATCH_SIZE,
            align=row.align, resume=(out / RUN_FILE).exists(), **bound,
        )  # fmt: skip
        record = recorded_run(config)
        if row.latency is not None:
            record["config"]["latency_table"] = table.name
        return {"setting": name, "what": row.what, "seed": seed, **record}

    record_missing(
        [(name, seed) for seed in range(seeds) for name in names], make, top1_of, records,
        commit=commit,
    )  # fmt: skip


@app.command()
def time(
    table: Annotated[Path, typer.Option(help="The one that training saw: its batch and threads.")],
    work: Annotated[Path, typer.Option(help="The run folders.")],
    seeds: Annotated[int, typer.Option(help="Runs a row.")] = 2,
    rounds: Annotated[int, typer.Option(help="Paired rounds.")] = MIN_ROUNDS,
) -> None:
    """Time the trained networks beside dense, each seed in one paired run, and write the record."""
    measured = read_latency_table(table)
    batch, threads = measured.head["batch"], measured.head["threads"]
    recorded = {
        seed: [row for row in ROWS if (RECORDS / f"{row.name}-{seed}.json").exists()]
        for seed in range(seeds)
    }
    family = sum(map(len, recorded.values()))
    comparisons = []
    for seed, rows in recorded.items():
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            runners = [
                stack.enter_context(closing(load_runner(file, threads=threads)))
                for file in _files(folder, work, rows, seed)
            ]
            found = compare_latency(runners, batch=batch, rounds=rounds, seed=seed, family=family)
        for row, comparison in zip(rows, found, strict=True):
            samples = [
                [s.round, s.network, s.repetitions, s.elapsed_ns] for s in comparison.samples
            ]
            comparisons.append(
                {"setting": row.name, "seed": seed, **comparison.conclusions(), "samples": samples}
            )
    document = {
        "what": "ResNet-20 trained with bounds on MACs and on predicted latency, beside dense: "
        f"host latency, warm caches, batch {batch}, ONNX Runtime, CPU, not a GPU claim",
        "n": rounds,
        "machine": describe_machine(),
        "table": measured.summary(),
        "sample_fields": ["round", "network", "repetitions", "elapsed_ns"],
        "comparisons": comparisons,
    }
    TIMES.write_text(_one_a_line(document))


def _files(folder: Path, work: Path, rows: list[Row], seed: int) -> list[Path]:
    """Dense and the rows' networks of one seed as ONNX files."""
    runs = [RunFolder(work / f"{row.name}-{seed}") for row in rows]
    torch.manual_seed(seed)
    networks = [runs[0].base_network(), *(run.pruned_network() for run in runs)]
    files = []
    for name, network in zip(["dense", *(row.name for row in rows)], networks, strict=True):
        files.append(folder / f"{name}.onnx")
        write_onnx(network.eval(), files[-1], torch.zeros(1, *runs[0].input_shape))
    return files


def _one_a_line(document: dict[str, Any]) -> str:
    rows = ",\n".join(json.dumps(row, allow_nan=False) for row in document["comparisons"])
    entries = [
        f"{json.dumps(key)}: " + (f"[\n{rows}\n]" if key == "comparisons" else json.dumps(value))
        for key, value in document.items()
    ]
    return "{\n" + ",\n".join(entries) + "\n}\n"


@app.command()
def report() -> None:
    """Write the table of what is recorded."""
    document = json.loads(TIMES.read_text())
    lines = [
        "# Trained with a bound on MACs, and with one on predicted latency",
        "",
        f"{document['what']}. ResNet-20 on CIFAR-10, {EPOCHS} epochs; {document['n']} paired "
        "rounds; intervals hold jointly with 95 %. Written by benchmarks/latency_target.py.",
        "",
        "| bound | seed | top-1 | kept MACs | multiple | predicted latency | dense over it |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        times = [c for c in document["comparisons"] if c["setting"] == row.name]
        results = []
        for each in times:  # those that were recorded when the clock ran
            path = RECORDS / f"{row.name}-{each['seed']}.json"
            result = json.loads(path.read_text())["result"]
            results.append(result)
            ratio = result["latency_ratio"]
            lines.append(
                f"| {row.what} | {each['seed']} | {100 * result['top1']:.2f} % "
                f"| {100 * result['macs_ratio']:.1f} % | {result['align']} "
                f"| {'-' if ratio is None else f'{100 * ratio:.1f} %'} "
                f"| {each['speedup']:.2f} [{each['ci_low']:.2f}, {each['ci_high']:.2f}], "
                f"{each['verdict'].replace('_', ' ')} |"
            )
        if not results:
            continue
        lines.append(
            f"| | mean | {100 * fmean(r['top1'] for r in results):.2f} % "
            f"| {100 * fmean(r['macs_ratio'] for r in results):.1f} % | | "
            f"| {fmean(each['speedup'] for each in times):.2f} |"
        )
    TABLE.write_text("\n".join(lines) + "\n")
    print(TABLE.read_text())


if __name__ == "__main__":
    app()
