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
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polarprune.errors import BundleError, ConfigError, ParityError, PolarpruneError
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
from polarprune.manifest_checks import PRECISIONS
from polarprune.option_values import check_choice
from polarprune.tasks import build_task
from polarprune_export.accuracy import onnx_accuracy, torch_accuracy
from polarprune_export.base_operators import base_operators, refuse_masks
from polarprune_export.bundle_reading import read_bundle_model
from polarprune_export.engine import (
    EngineOptions,
    EngineReport,
    batch_profiles,
    build_engine,
    check_engine_options,
)
from polarprune_export.half_precision import LOW_TYPES, OPSETS
from polarprune_export.onnx_lint import BASE_OPERATORS, lint_onnx
from polarprune_export.onnx_session import require_onnxruntime
from polarprune_export.onnx_writer import OPSET, OnnxReport, write_onnx
from polarprune_export.parity import check_parity, count_for_side
from polarprune_export.parity_samples import SAMPLES_NAME, normalise_pixels, pack_samples
from polarprune_export.precisions import STAGES
from polarprune_export.probes import Probe, draw_samples, random_pixels
from polarprune_export.shipped_model import ShippedModel, ship_model
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
    finding is refused. `precision` is one of `PRECISIONS`; with `embed_preprocess` the file takes
    pixels.
    """

    name: str
    preprocessing: Preprocessing | None = None
    classes: Sequence[str] = ()
    cuts: Sequence[CertificateLink] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    data: "Dataset | None" = None
    max_accuracy_drop: float | None = None
    unpruned: Callable[[], nn.Module] | None = None
    precision: str = "fp32"
    embed_preprocess: bool = False


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
        batch: smallest, tuned and largest batch size of the engine; where all are one size, the
            ONNX file takes that size alone.
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
    _check_contents(contents, example_input.shape[1])
    precision = contents.precision
    embed = contents.preprocessing if contents.embed_preprocess else None
    with _new_folder(Path(folder)) as place:
        if progress is not None:
            progress("ONNX, and torch against it", 0, 1)
        plain = write_onnx(
            dense, place / ONNX_NAME, example_input, opset=OPSETS.get(precision, OPSET)
        )
        own = base_operators(plain, dense, example_input, contents.unpruned)
        lint_onnx(plain.path, own)
        refuse_masks(plain, own)
        probes, links = _check_parity(dense, plain, contents)
        before = _accuracy_before(dense, plain, contents, progress)
        shape = plain.inputs[0].shape[1:]
        samples = partial(draw_samples, contents.data, contents.preprocessing, shape)
        fixed = batch[0] if batch[0] == batch[2] else None
        shipped = ship_model(plain, precision, embed, fixed, samples, probes, progress)
        accuracy = _accuracy_after(shipped, before, contents, progress)
        built = None
        if engine is not None:
            built = _build_named_engine(place, engine, batch, progress)
        (place / SAMPLES_NAME).write_bytes(_stored(probes, contents))
        files = {path.name: FileEntry.of(path.read_bytes()) for path in sorted(place.iterdir())}
        manifest = Manifest(
            name=contents.name,
            precision=precision,
            base={**contents.base, **({BASE_OPERATORS: own} if own else {})},
            inputs=shipped.report.inputs,
            outputs=shipped.report.outputs,
            preprocessing=_stated(contents),
            classes=tuple(contents.classes),
            batch=BatchProfile(*batch),
            engine=None if built is None else built.info,
            certificate=(*contents.cuts, *links, *shipped.links, *_engine_links(built, precision)),
            real_images=_describe_real(probes, contents),
            accuracy=accuracy,
            tools=_tool_versions(),
            files=files,
            accuracy_before=before,
            kept_float32=shipped.kept,
            kept_because=shipped.why,
        )
        Manifest.from_json(manifest.to_json())  # as whoever reads it will
        write_manifest(manifest, place)
        read_bundle_model(place)  # what nobody could load is not left behind
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
    except PolarpruneError as error:  # it may name a file, and its folder is gone in a moment
        error.args = tuple(str(word).replace(str(partial), str(folder)) for word in error.args)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def _check_cuts(cuts: Sequence[CertificateLink]) -> None:
    for link in cuts:
        if link.passed is False:
            raise ParityError(
                f"the certificate chain is broken at {link.stage!r}: the check of that cut failed "
                f"(error {link.max_rel_error:.1e}, tolerance {link.tolerance:g}); train again"
            )


def _check_contents(contents: BundleContents, channels: int) -> None:
    """Raises before the long work what can be known then."""
    if contents.preprocessing is not None and len(contents.preprocessing.mean) != channels:
        raise ConfigError(
            f"the preprocessing is for images of {len(contents.preprocessing.mean)} channels, the "
            f"network takes {channels}; give data with as many"
        )
    check_choice("--precision", contents.precision, PRECISIONS)
    if contents.max_accuracy_drop is not None and contents.data is None:
        raise ConfigError("--max-accuracy-drop is measured on a test split; give --data")
    if contents.precision == "int8" and contents.data is None:
        raise ConfigError("--precision int8 takes its scales from real images; give --data")
    if contents.embed_preprocess and contents.preprocessing is None:
        raise ConfigError(
            "--embed-preprocess needs the mean and std of the training images, and they are not "
            "known; give --data, or --weights that say them"
        )
    _check_cuts(contents.cuts)


def _check_parity(
    dense: nn.Module, report: OnnxReport, contents: BundleContents
) -> tuple[list[Probe], tuple[CertificateLink, ...]]:
    """What the float32 file was compared on, and the links of that."""
    data, preprocessing = contents.data, contents.preprocessing
    noise = pixels = images = random_images = None
    if contents.embed_preprocess and preprocessing is not None:
        noise = random_pixels(report.inputs[0].shape[1:])
        random_images = torch.from_numpy(normalise_pixels(noise, preprocessing))
    if data is not None and preprocessing is not None:
        wanted = count_for_side(REAL_IMAGES, data.image_size)
        pixels = data.test.raw(min(wanted, len(data.test)))[0].numpy()
        images = torch.from_numpy(normalise_pixels(pixels, preprocessing))
    parity = check_parity(dense, report.path, real_images=images, random_images=random_images)
    probes = [Probe("random", noise, *parity.random)]
    if parity.real is not None:
        probes.append(Probe("real", pixels, *parity.real))
    return probes, parity.links


def _accuracy_before(
    dense: nn.Module, report: OnnxReport, contents: BundleContents, progress: Progress | None
) -> Accuracy | None:
    """Of the float32 network, where it will be asked for: the file's where it is not shipped."""
    if contents.data is None:
        return None
    if contents.precision != "fp32":
        return onnx_accuracy(report.path.read_bytes(), contents.data, progress=progress)
    if contents.max_accuracy_drop is None:
        return None
    network = copy.deepcopy(dense).cpu().float().eval()
    return torch_accuracy(network, contents.data, progress)


def _accuracy_after(
    shipped: ShippedModel,
    before: Accuracy | None,
    contents: BundleContents,
    progress: Progress | None,
) -> Accuracy | None:
    if contents.data is None:
        return None
    takes = contents.preprocessing if contents.embed_preprocess else None
    emulated = ", emulated" if contents.precision in LOW_TYPES else ""
    accuracy = onnx_accuracy(
        shipped.runs_here, contents.data, takes, f"onnxruntime{emulated}", progress
    )
    if contents.max_accuracy_drop is not None and before is not None:
        figure = build_task(contents.data.task).headline
        was, now = before.figures[figure], accuracy.figures[figure]
        drop = was - now
        if 100 * drop > contents.max_accuracy_drop:
            pruned = "pruned " if contents.cuts else ""
            raise ParityError(
                f"{WORDS[figure]} on {contents.data.name} is {100 * drop:.2f} points below that of "
                f"the {pruned}network in float32 before export ({was:.4f} to {now:.4f}), "
                f"{contents.max_accuracy_drop:g} are allowed; choose another --precision, or a "
                "larger --max-accuracy-drop"
            )
    return accuracy


def _stated(contents: BundleContents) -> Preprocessing | None:
    """What is left to do before the input, as the manifest says it."""
    if contents.preprocessing is None or not contents.embed_preprocess:
        return contents.preprocessing
    return replace(contents.preprocessing, layout="NHWC", embedded=True)


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


def _stored(probes: Sequence[Probe], contents: BundleContents) -> bytes:
    """A few of what was compared. int8 is not compared on noise."""
    chosen = []
    for probe in probes:
        if contents.precision == "int8" and probe.kind != "real":
            continue
        kept = min(count_for_side(STORED_IMAGES, probe.images.shape[-1]), len(probe.images))
        # Spread over those that were compared: data sets are often sorted by class.
        rows = [i * len(probe.images) // kept for i in range(kept)]
        chosen.append(probe.rows(rows))
    return pack_samples(chosen)


def _engine_links(built: EngineReport | None, precision: str) -> tuple[CertificateLink, ...]:
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
            against=STAGES[precision],
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


def _describe_real(probes: Sequence[Probe], contents: BundleContents) -> str:
    real = [probe for probe in probes if probe.kind == "real"]
    if not real or contents.data is None:
        return NO_REAL_IMAGES
    return f"{len(real[0].images)} test images of {contents.data.name}"


def _tool_versions() -> dict[str, str]:
    versions = {}
    for tool in TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue  # a source tree that is not installed, or onnxruntime-gpu
    return versions
