"""A network written as a bundle: ONNX, engine, certificate and manifest in one folder.

The folder is made beside its place under another name and moved there when it is whole, so a
failure leaves what was there before. It holds no time and no path: the same network gives the same
bytes, but for the engine (TensorRT's builds are not reproducible) and its digest in the manifest.
"""

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polarprune.errors import BundleError, ConfigError, ParityError
from polarprune.figure_words import WORDS
from polarprune.manifest import (
    Accuracy,
    BatchProfile,
    CertificateLink,
    FileEntry,
    Manifest,
    Preprocessing,
    is_bundle,
    write_manifest,
)
from polarprune.tasks import build_task
from polarprune_export.accuracy import onnx_accuracy, torch_accuracy
from polarprune_export.base_operators import base_operators, refuse_masks
from polarprune_export.engine import (
    EngineOptions,
    EngineReport,
    batch_profiles,
    build_engine,
    check_engine_options,
)
from polarprune_export.onnx_guard import guard_model
from polarprune_export.onnx_lint import BASE_OPERATORS, lint_onnx
from polarprune_export.onnx_session import Array, require_onnxruntime
from polarprune_export.onnx_writer import OnnxReport, write_onnx
from polarprune_export.parity import ParityResult, check_parity, count_for_side
from polarprune_export.parity_samples import SAMPLES_NAME, normalise_pixels, pack_samples
from polarprune_export.signatures import load_signing_key, sign_manifest

if TYPE_CHECKING:
    from polarprune.datasets import Dataset

ONNX_NAME = "model.onnx"
REAL_IMAGES = 256
"""Compared with torch in float64; of images above 64 pixels a quarter."""
STORED_IMAGES = 8
"""Kept in the bundle of each kind; of images above 64 pixels a quarter."""
NO_REAL_IMAGES = "none: no data set was given, so the certificate rests on random inputs alone"
TOOLS = ("onnx", "onnxruntime", "onnxscript", "onnxsim", "polarprune", "torch")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BundleContents:
    """What a bundle says about its network besides what is measured.

    `cuts` opens the certificate chain. `max_accuracy_drop` is in points (0..100) of top-1 (of a
    segmentation mIoU) that the exported model may lose against torch on `data`. `unpruned` makes
    the network before pruning, which tells the lint what the network itself needs; without it every
    finding is refused.
    """

    name: str
    preprocessing: Preprocessing | None = None
    classes: Sequence[str] = ()
    cuts: Sequence[CertificateLink] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    data: "Dataset | None" = None
    max_accuracy_drop: float | None = None
    unpruned: Callable[[], nn.Module] | None = None


def write_bundle(
    dense: nn.Module,
    folder: Path | str,
    example_input: Tensor,
    contents: BundleContents,
    *,
    batch: tuple[int, int, int] = (1, 8, 64),
    engine: EngineOptions | str | None = None,
    signing_key: Path | str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Exports, checks and describes a network; the folder appears whole or not at all.

    Args:
        dense: plain or traceable network; left unmodified.
        folder: absent, empty, or a bundle, which is replaced.
        example_input: (n, c, h, w).
        batch: smallest, tuned and largest batch size of the engine.
        engine: None for ONNX alone, else a runtime ("auto", "tensorrt", "tensorrt_rtx") or options.
        signing_key: a PEM file with an ed25519 private key; the manifest is signed with it.

    Raises:
        BundleError: the folder holds something else.
        Refused, ParityError, BackendUnavailable, ConfigError: a link of the chain does not hold.
    """
    batch_profiles(batch)
    if isinstance(engine, str):
        engine = EngineOptions(engine)
    if engine is not None:
        check_engine_options(engine)
    key = None if signing_key is None else load_signing_key(signing_key)
    require_onnxruntime()  # before the long work: without it nothing can be certified
    if contents.max_accuracy_drop is not None and contents.data is None:
        raise ConfigError("the accuracy drop was bounded without a data set; give --data")
    _check_cuts(contents.cuts)
    with _new_folder(Path(folder)) as place:
        if progress is not None:
            progress("ONNX, and torch against it", 0, 1)
        report = write_onnx(dense, place / ONNX_NAME, example_input)
        own = base_operators(report, dense, example_input, contents.unpruned)
        lint_onnx(report.path, own)
        guard_model(report.path.read_bytes(), str(report.path))  # as whoever loads it will
        refuse_masks(report, own)
        parity, pixels = _check_parity(dense, report, contents)
        accuracy = _measure_accuracy(dense, report, contents, progress)
        built = None
        if engine is not None:
            built = _build_named_engine(place, engine, batch, progress)
        samples = _samples(parity, pixels, example_input.shape[-1])
        (place / SAMPLES_NAME).write_bytes(samples)
        files = {path.name: FileEntry.of(path.read_bytes()) for path in sorted(place.iterdir())}
        manifest = Manifest(
            name=contents.name,
            precision="fp32",
            base={**contents.base, **({BASE_OPERATORS: own} if own else {})},
            inputs=report.inputs,
            outputs=report.outputs,
            preprocessing=contents.preprocessing,
            classes=tuple(contents.classes),
            batch=BatchProfile(*batch),
            engine=None if built is None else built.info,
            certificate=(*contents.cuts, *parity.links, *_engine_links(built)),
            real_images=_describe_real(parity, contents),
            accuracy=accuracy,
            tools=_tool_versions(),
            files=files,
        )
        Manifest.from_json(manifest.to_json())  # as whoever reads it will
        write_manifest(manifest, place)
        if key is not None:
            sign_manifest(place, key)
    return manifest


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder under another name, moved to its place if the block succeeds."""
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"{folder} is a file; give a folder for the bundle")
    if folder.is_dir() and any(folder.iterdir()) and not is_bundle(folder):
        raise BundleError(
            f"{folder} is not empty and is not a bundle; give another folder for the bundle"
        )
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    previous = folder.with_name(f".{folder.name}.{os.getpid()}.previous")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be written ({error.strerror}); give another folder"
        ) from None
    try:
        yield partial
        if folder.exists():
            folder.rename(previous)
        try:
            partial.rename(folder)
        except OSError:
            if previous.exists():
                previous.rename(folder)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def _check_cuts(cuts: Sequence[CertificateLink]) -> None:
    for link in cuts:
        if link.passed is False:
            raise ParityError(
                f"the certificate chain is broken at {link.stage!r}: the check of that cut failed "
                f"(error {link.max_rel_error}, tolerance {link.tolerance}); train again"
            )


def _check_parity(
    dense: nn.Module, report: OnnxReport, contents: BundleContents
) -> tuple[ParityResult, Array | None]:
    """The parity links, and the pixels of the real images."""
    data, preprocessing = contents.data, contents.preprocessing
    if data is None or preprocessing is None:
        return check_parity(dense, report.path, real_images=None), None
    wanted = count_for_side(REAL_IMAGES, data.image_size)
    pixels: Array = data.test.raw(min(wanted, len(data.test)))[0].numpy()
    images = torch.from_numpy(normalise_pixels(pixels, preprocessing))
    return check_parity(dense, report.path, real_images=images), pixels


def _measure_accuracy(
    dense: nn.Module, report: OnnxReport, contents: BundleContents, progress: Progress | None
) -> Accuracy | None:
    if contents.data is None:
        return None
    accuracy = onnx_accuracy(report.path.read_bytes(), contents.data, progress)
    if contents.max_accuracy_drop is not None:
        network = copy.deepcopy(dense).cpu().float().eval()
        before = torch_accuracy(network, contents.data, progress)
        figure = build_task(contents.data.task).headline
        was, now = before.figures[figure], accuracy.figures[figure]
        drop = 100 * (was - now)
        if drop > contents.max_accuracy_drop:
            raise ParityError(
                f"{WORDS[figure]} falls by {drop:.2f} points on {contents.data.name} ({was:.4f} to "
                f"{now:.4f}), {contents.max_accuracy_drop:g} are allowed; "
                "export with another precision or allow more"
            )
    return accuracy


def _build_named_engine(
    place: Path,
    options: EngineOptions,
    batch: tuple[int, int, int],
    progress: Progress | None,
) -> EngineReport:
    """The engine under `model.<runtime>.engine`; which runtime "auto" is shows when it is built."""
    report = build_engine(
        place / ONNX_NAME,
        out_path=place / "model.engine",
        batch=batch,
        runtime=options.runtime,
        targets=options.targets,
        compatibility=options.compatibility,
        progress=progress,
    )
    for note in report.notes:
        if progress is not None:
            progress(note, 1, 1)
    path = report.path.rename(place / f"model.{report.info.runtime}.engine")
    return replace(report, path=path, info=replace(report.info, file=path.name))


def _samples(parity: ParityResult, pixels: Array | None, side: int) -> bytes:
    kept = count_for_side(STORED_IMAGES, side)
    inputs, outputs = parity.random
    random = (inputs[:kept], [output[:kept] for output in outputs])
    if parity.real is None or pixels is None:
        return pack_samples(random, None)
    # Spread over those that were compared: data sets are often sorted by class.
    kept = min(kept, len(pixels))
    chosen = [i * len(pixels) // kept for i in range(kept)]
    return pack_samples(random, (pixels[chosen], [output[chosen] for output in parity.real[1]]))


def _engine_links(built: EngineReport | None) -> tuple[CertificateLink, ...]:
    if built is None:
        return ()
    reason = (
        "this version builds engines and does not run them"
        if torch.cuda.is_available()
        else "no CUDA device on the machine that built it"
    )
    return (
        CertificateLink(
            stage=f"engine {built.info.runtime} {built.info.version}",
            against="onnxruntime (float32)",
            inputs=None,
            n=0,
            tolerance=None,
            max_abs_error=None,
            max_rel_error=None,
            top1_agreement=None,
            passed=None,
            note=f"not run here: {reason}",
        ),
    )


def _describe_real(parity: ParityResult, contents: BundleContents) -> str:
    if parity.real is None or contents.data is None:
        return NO_REAL_IMAGES
    return f"{len(parity.real[0])} test images of {contents.data.name}"


def _tool_versions() -> dict[str, str]:
    versions = {}
    for tool in TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue  # a source tree that is not installed, or onnxruntime-gpu
    return versions
