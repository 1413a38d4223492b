"""`polarprune profile`: a latency table of a network's layers."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from polarprune.commands.options import AsJson, Classes, ImageSize, RunDevice
from polarprune.terminal import Terminal, progress_on


def profile(
    x: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="What to measure the layers of.")],
    out: Annotated[Path, typer.Option(help="File to write, JSON; an older one is replaced.")],
    device: RunDevice = "cpu",
    backend: Annotated[
        str,
        typer.Option(
            help="onnxruntime (CPU), torch, or auto: torch with --device cuda, else onnxruntime."
        ),
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of torch: fp32, fp16 or bf16.", show_default="fp16 on a GPU, fp32 on a CPU"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images in one call.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads inside one operator.", show_default="all CPUs")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and order.")] = 0,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    as_json: AsJson = False,
) -> None:
    """Measure how long layers take by their channels.

    Time is a staircase in channel counts, another one on each device. The table is what `train
    --target-latency --latency-table` goes by; it takes minutes, best on a quiet machine.
    """
    from polarprune_deploy.layers.profiling import ProfileRequest
    from polarprune_deploy.layers.profiling import profile as profile_layers
    from polarprune_deploy.layers.profiling_words import describe_table

    terminal = Terminal(as_json)
    with progress_on(sys.stderr) as progress:
        table = profile_layers(
            x, out, ProfileRequest(batch, threads, seed, backend, device, precision),
            num_classes=num_classes, image_size=image_size,
            progress=lambda what, done, of: progress(what, done, of, {}),
        )  # fmt: skip
    terminal.show(*describe_table(table), f"Table: {out}")
    terminal.result({"table": str(out), **table.summary()})
