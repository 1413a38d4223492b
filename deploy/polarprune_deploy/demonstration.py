"""`polarprune demo`: the whole chain on real images, in minutes on two cores.

scikit-learn's digits, ResNet-20 at 16x16, twice with the same recipe and seed: pruned to half of
the MACs and dense. Both are exported, an engine is built where TensorRT-RTX is installed, the two
are timed against each other, and two pictures are drawn.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarprune.errors import BackendUnavailable, RunFolderError
from polarprune.runs.run_folder import PLOTS, RunFolder

if TYPE_CHECKING:
    from rich.table import Table

    from polarprune.runs.train_config import TrainConfig, TrainResult

MODEL, DATA, IMAGE_SIZE = "resnet20", "digits", 16
# Small batches: gates learn by the step, and 540 steps give them 160 to agree in.
TARGET, EPOCHS, BATCH_SIZE = 0.5, 12, 32
# With counts as they fell, half the MACs ran slower than dense in ONNX Runtime on an AVX2 machine
# (benchmarks/results/alignment.json); why is not established.
ALIGN = 8
BENCH_BATCHES = (1, 64)

LEAST_TOP1 = 0.975
LEAST_BLOCKS_REMOVED = 1

DENSE, BUNDLE, DENSE_BUNDLE = "dense", "bundle", "dense-bundle"

Progress = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class DemoResult:
    """What the demo made and found.

    Attributes:
        onnx_bytes, engine_bytes: (dense, pruned); None where no engine could be built.
        engine_note: why there is no engine, or where it runs.
        rows: those of `bench --json`.
        plots: the pictures.
        missed: bounds of the demo that the result does not meet, in words.
    """

    pruned: "TrainResult"
    dense: "TrainResult"
    test_images: int
    bundle: Path
    onnx_bytes: tuple[int, int]
    engine_bytes: tuple[int, int] | None
    engine_note: str
    rows: list[dict[str, Any]]
    plots: tuple[Path, ...]
    plots_note: str | None
    missed: tuple[str, ...]

    @property
    def remarks(self) -> list[str]:
        """What a reader should know beside the table."""
        pictures = self.plots_note or "Pictures: " + ", ".join(str(path) for path in self.plots)
        return [
            f"Residual blocks removed: {self.pruned.blocks_removed}. Agreement of the gates at the "
            f"cut: {100 * self.pruned.agreement:.2f} %.",
            f"Training: {100 * self.pruned.train_macs_ratio:.1f} % of the MACs of dense training, "
            f"{self.pruned.seconds:.0f} s against {self.dense.seconds:.0f} s.",
            "Latency: ONNX Runtime on this CPU, paired rounds, joint 95 % intervals.",
            self.engine_note,
            pictures,
            f"Go on with: polarprune inspect {self.pruned.run}",
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the keys of `train`, the bundle, the rows of `bench`, and the dense side."""
        return {
            **self.pruned.as_dict(),
            "bundle": str(self.bundle),
            "rows": self.rows,
            "dense": self.dense.as_dict(),
            "test_images": self.test_images,
            "onnx_bytes": _sides(self.onnx_bytes),
            "engine_bytes": None if self.engine_bytes is None else _sides(self.engine_bytes),
            "engine_note": self.engine_note,
            "plots": [str(path) for path in self.plots],
            "missed": list(self.missed),
        }


def _sides(values: tuple[int, int]) -> dict[str, int]:
    return {"dense": values[0], "pruned": values[1]}


def run_demo(out: Path, progress: Progress, epochs: int = EPOCHS) -> DemoResult:
    """Run everything; `out` becomes the run folder of the pruned run.

    `out/dense`, `out/bundle`, `out/dense-bundle` and `out/plots` lie inside. Failure or an
    interruption leaves nothing of it behind.

    Raises:
        RunFolderError: `out` is not empty.
        PolarpruneError: whatever a link of the chain raises.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunFolderError(
            f"--out {out} is not an empty folder; remove it, or choose another by --out"
        )
    existed = out.exists()
    try:
        return _run_chain(out, progress, epochs)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        if existed:
            out.mkdir()
        raise


def _run_chain(out: Path, progress: Progress, epochs: int) -> DemoResult:
    from polarprune.datasets import load_dataset
    from polarprune.runs.training import train
    from polarprune_deploy.benching import bench

    pruned = train(_recipe(out, TARGET, epochs), _named("pruned", progress))
    dense = train(_recipe(out / DENSE, 1.0, epochs), _named("dense", progress))
    exported, note = _export_both(out, progress)
    answer = bench(
        out / BUNDLE,
        out / DENSE_BUNDLE,
        batches=BENCH_BATCHES,
        on_row=lambda row: progress(f"timed at batch {row.batch}", 1, 1, {}),
    )
    plots, plots_note = _draw(out, progress)
    engines = [found["engine"] for found in exported]
    return DemoResult(
        pruned=pruned,
        dense=dense,
        test_images=len(load_dataset(DATA, image_size=IMAGE_SIZE).test),
        bundle=out / BUNDLE,
        onnx_bytes=_bytes(exported[0]["onnx"], exported[1]["onnx"]),
        engine_bytes=None if None in engines else _bytes(*engines),
        engine_note=note,
        rows=answer["rows"],
        plots=plots,
        plots_note=plots_note,
        missed=missed_bounds(pruned),
    )


def missed_bounds(pruned: "TrainResult") -> tuple[str, ...]:
    """What the demo promises and this result does not hold."""
    found = []
    if pruned.top1 < LEAST_TOP1:
        found.append(f"top-1 is {pruned.top1:.4f}, promised at least {LEAST_TOP1}")
    if pruned.macs_ratio > TARGET:
        found.append(f"kept MACs are {pruned.macs_ratio:.4f}, promised at most {TARGET}")
    if pruned.blocks_removed < LEAST_BLOCKS_REMOVED:
        found.append(
            f"{pruned.blocks_removed} residual blocks are gone, promised {LEAST_BLOCKS_REMOVED}"
        )
    return tuple(found)


def _recipe(out: Path, target: float, epochs: int) -> "TrainConfig":
    from polarprune.runs.train_config import TrainConfig

    return TrainConfig(
        model=MODEL,
        data=DATA,
        out=out,
        target=target,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        image_size=IMAGE_SIZE,
        align=ALIGN,
    )


def _named(name: str, progress: Progress) -> Progress:
    def show(text: str, step: int, steps: int, figures: dict[str, float]) -> None:
        progress(f"{name}, {text}", step, steps, figures)

    return show


def _export_both(out: Path, progress: Progress) -> tuple[list[dict[str, Any]], str]:
    """Dense and pruned, with an engine each where one can be built, and a word about it."""
    from polarprune_export import export_bundle

    pairs = ((out / DENSE, out / DENSE_BUNDLE), (out, out / BUNDLE))

    def export(kind: str) -> list[dict[str, Any]]:
        found = []
        for count, (run, bundle) in enumerate(pairs):
            progress(f"writing {bundle.name} ({kind})", count, len(pairs), {})
            found.append(export_bundle(run, format=kind, data=DATA, out=bundle))
        return found

    try:
        exported = export("trt")
    except BackendUnavailable as error:
        # Without TensorRT the chain goes on; without ONNX Runtime this raises the same again.
        return export("onnx"), f"No engine: {error}"
    return exported, f"Engine runs on: {exported[-1]['runs_on']}"


def _draw(out: Path, progress: Progress) -> tuple[tuple[Path, ...], str | None]:
    """The pictures, or why there are none: they are not worth the chain."""
    from polarprune.reports.plots import draw_channels, draw_gates

    progress("drawing", 0, 1, {})
    run, folder = RunFolder(out), out / PLOTS
    try:
        draw_gates(run, folder / "gates.png")
        draw_channels(run, folder / "channels.png")
    except BackendUnavailable as error:
        return (), f"No pictures: {error}"
    return (folder / "gates.png", folder / "channels.png"), None


def _bytes(dense: str, pruned: str) -> tuple[int, int]:
    return Path(dense).stat().st_size, Path(pruned).stat().st_size


def demo_table(result: DemoResult) -> "Table":
    """Dense against pruned."""
    from polarprune.inspection.inspection_tables import make_table

    dense, pruned = result.dense, result.pruned
    table = make_table(
        f"{MODEL} on {DATA}, {IMAGE_SIZE}x{IMAGE_SIZE}, one seed",
        [""],
        ["dense", "pruned", "pruned / dense"],
    )
    table.add_row(
        f"top-1 (n = {result.test_images})", f"{100 * dense.top1:.2f} %",
        f"{100 * pruned.top1:.2f} %", f"{100 * (pruned.top1 - dense.top1):+.2f} points",
    )  # fmt: skip
    sizes: list[tuple[str, tuple[int, int] | None]] = [
        ("MACs", (dense.macs, pruned.macs)),
        ("parameters", (dense.params, pruned.params)),
        ("ONNX, bytes", result.onnx_bytes),
        ("engine, bytes", result.engine_bytes),
    ]
    for name, pair in sizes:
        if pair is None:
            table.add_row(name, "-", "-", "-")
        else:
            table.add_row(name, f"{pair[0]:,}", f"{pair[1]:,}", f"{pair[1] / pair[0]:.3f}")
    for row in result.rows:
        table.add_row(
            f"latency at batch {row['batch']}", f"{row['against_ms']:.3f} ms",
            f"{row['ms']:.3f} ms",
            f"{row['speedup']:.2f} x [{row['ci_low']:.2f}, {row['ci_high']:.2f}], "
            + str(row["verdict"]).replace("_", " "),
        )  # fmt: skip
    return table
