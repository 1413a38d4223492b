"""`polarprune export`: a checked bundle of a run or a model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from polarprune.commands.options import AsJson, Classes, ImageSize, Weights
from polarprune.figure_words import task_figures
from polarprune.terminal import Terminal, progress_on


def export(
    x: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="What to export; a folder of save_network is a MODEL too."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Bundle folder to make; an older bundle is replaced.")],
    format: Annotated[str, typer.Option(help="onnx, or trt for ONNX and an engine.")] = "onnx",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, bf16 or int8 (int8 needs --data); in and out fp32.")
    ] = "fp32",
    embed_preprocess: Annotated[
        bool,
        typer.Option(
            "--embed-preprocess", help="Take uint8 pixels (n, h, w, 3), normalise in the graph."
        ),
    ] = False,
    batch: Annotated[
        str,
        typer.Option(
            help="Batch sizes of the engine, images: smallest:tuned:largest; one number fixes it, "
            "in the ONNX file too."
        ),
    ] = "1:8:64",
    data: Annotated[
        str | None,
        typer.Option(
            help="Check with these real images too, as in train --data.", show_default="none"
        ),
    ] = None,
    weights: Weights = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Refuse to lose more top-1 (or mIoU) than this, 0..100.",
            show_default="no bound",
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CAPABILITY",
            help="Compute capability of the engine, as 8.9; several with commas.",
            show_default="all that can be built",
        ),
    ] = None,
    engine_compat: Annotated[
        str,
        typer.Option(
            help="Where an enterprise TensorRT engine runs too: none, version, ampere+ or same-cc."
        ),
    ] = "none",
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY.pem",
            help="Sign the manifest with this ed25519 private key.",
            show_default="unsigned",
        ),
    ] = None,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    as_json: AsJson = False,
) -> None:
    """Write a checked bundle: ONNX, engine, manifest.

    Every step is compared with the network in float64; a bundle that does not hold is not written.
    """
    from polarprune_export import exporting
    from polarprune_export.uneven_channels import uneven_words

    terminal = Terminal(as_json)
    with progress_on(sys.stderr) as progress:
        answer = exporting.export_bundle(
            x, format=format, precision=precision, batch=batch, data=data, weights=weights,
            num_classes=num_classes, image_size=image_size, out=out,
            max_accuracy_drop=max_accuracy_drop, gpus=gpu or (), engine_compat=engine_compat,
            sign=sign, embed_preprocess=embed_preprocess,
            progress=lambda text, step, steps: progress(text, step, steps, {}),
        )  # fmt: skip
    terminal.show(
        f"Bundle {answer['bundle']}: {answer['precision']}, "
        f"input {' x '.join(map(str, answer['input_shape']))}, "
        f"outputs differ from torch in float64 by at most {answer['max_abs_error']:.1e}.",
        f"Runs on: {answer['runs_on']}",
    )
    if answer["random_weights"]:
        terminal.show("Its weights are random, as no --weights were given: good for timing alone.")
    if task_figures(answer):
        before = answer["before"]
        was = "" if before is None else f"; in float32: {task_figures(before)}"
        terminal.show(f"Of the ONNX file: {task_figures(answer)}{was}.")
    if answer["kept_float32"]:
        terminal.show(f"Left in float32: {', '.join(answer['kept_float32'])}")
    if answer["uneven_convolutions"] and precision == "fp32":
        terminal.show(uneven_words(answer["onnx"], x))
    terminal.result(answer)
