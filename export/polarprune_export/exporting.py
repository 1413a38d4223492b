"""`polarprune export`: from a run or a network's name to a bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from polarprune.errors import ConfigError
from polarprune.manifest import Manifest
from polarprune.manifest_checks import PRECISIONS
from polarprune.option_values import check_choice, check_range
from polarprune_export.bundle import ONNX_NAME, BundleContents, Progress, write_bundle
from polarprune_export.engine import EngineOptions, batch_profiles
from polarprune_export.engine_compatibility import check_compatibility
from polarprune_export.engine_targets import parse_targets
from polarprune_export.export_sources import RANDOM_WEIGHTS, open_source
from polarprune_export.uneven_channels import uneven_layers

FORMATS = ("onnx", "trt")


def export_bundle(
    source: str | Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    batch: str | tuple[int, int, int] = (1, 8, 64),
    data: str | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    out: str | Path,
    max_accuracy_drop: float | None = None,
    gpus: Sequence[str] = (),
    engine_compat: str = "none",
    sign: str | Path | None = None,
    embed_preprocess: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes the bundle and returns the JSON object of `polarprune export`.

    Args:
        source: a run folder, or a network's `--model` name.
        format: "onnx", or "trt" for ONNX and an engine.
        batch: smallest, tuned and largest batch size of the engine, or that as "1:8:64"; "8" for
            batches of 8 alone, in the ONNX file too.
        data: evaluated on the whole test split, and part of the certificate.
        weights, num_classes, image_size: of a network named by `source`; a run has its own.
        out: the bundle's folder.
        precision: "fp32", "fp16", "bf16" or "int8"; int8 takes its scales from the data.
        max_accuracy_drop: points of top-1, or of mIoU (0..100), that may be lost against float32.
        embed_preprocess: the file takes uint8 (n, h, w, 3) and normalises it.
        gpus: compute capabilities of the engine, as ("8.6", "8.9"); empty: all that can be had.
        engine_compat: how far an enterprise engine may travel, one of `COMPATIBILITIES`.
        sign: a PEM file with an ed25519 private key, which signs the manifest.

    Raises:
        PolarpruneError: one line that says what is wrong; nothing is left half-written.
    """
    check_choice("--format", format, FORMATS)
    check_choice("--precision", precision, PRECISIONS)
    check_range("--max-accuracy-drop", max_accuracy_drop, 0, 100, " points")
    engine = _engine_options(format, gpus, engine_compat)
    sizes = parse_batch(batch)
    opened = open_source(
        source, data=data, weights=weights, num_classes=num_classes, image_size=image_size
    )
    contents = BundleContents(
        name=opened.name,
        preprocessing=opened.preprocessing,
        classes=opened.classes,
        cuts=opened.cuts,
        base=opened.base,
        data=opened.data,
        max_accuracy_drop=max_accuracy_drop,
        unpruned=opened.unpruned,
        precision=precision,
        embed_preprocess=embed_preprocess,
    )
    generator = torch.Generator().manual_seed(0)
    manifest = write_bundle(
        opened.network,
        out,
        torch.randn(2, *opened.input_shape, generator=generator),
        contents,
        batch=sizes,
        engine=engine,
        signing_key=sign,
        progress=progress,
    )
    return {**_summary(manifest, Path(out)), "input_shape": list(opened.input_shape)}


def parse_batch(batch: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """Three batch sizes out of "1:8:64", or three times the one of "8".

    Raises:
        ConfigError: neither one whole number nor three that rise from 1 on.
    """
    if isinstance(batch, str):
        parts = batch.split(":")
        if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
            raise ConfigError(
                f"--batch must be MIN:OPT:MAX, as 1:8:64, or one number, got {batch!r}"
            )
        low, opt, high = (int(part) for part in (parts if len(parts) == 3 else parts * 3))
        batch = (low, opt, high)
    batch_profiles(batch)
    return batch


def _engine_options(format: str, gpus: Sequence[str], engine_compat: str) -> EngineOptions | None:
    check_compatibility(engine_compat)
    targets = parse_targets(gpus)
    if format == "trt":
        return EngineOptions("auto", targets or None, engine_compat)
    if targets or engine_compat != "none":
        raise ConfigError(
            f"--gpu and --engine-compat are of an engine, and --format {format} builds none; "
            "give --format trt"
        )
    return None


def _summary(manifest: Manifest, folder: Path) -> dict[str, Any]:
    engine = manifest.engine
    measured = [link for link in manifest.certificate if link.stage.startswith("onnxruntime")]
    exported = [link for link in measured if link.stage == measured[-1].stage]
    before = manifest.accuracy_before
    return {
        "bundle": str(folder),
        "onnx": str(folder / ONNX_NAME),
        "engine": None if engine is None else str(folder / engine.file),
        "runs_on": manifest.runs_on,
        "random_weights": manifest.base.get("weights") == RANDOM_WEIGHTS,
        "precision": manifest.precision,
        "max_abs_error": max(link.max_abs_error or 0.0 for link in exported),
        **{"top1": None, **({} if manifest.accuracy is None else manifest.accuracy.figures)},
        "before": None if before is None else before.figures,
        "kept_float32": list(manifest.kept_float32),
        "uneven_convolutions": len(uneven_layers(folder / ONNX_NAME)),
    }
