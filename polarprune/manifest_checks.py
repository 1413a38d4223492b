"""Values of a manifest that have the right kind and yet cannot be meant.

What the kinds of the fields cannot say: sizes that no memory holds, a deviation of zero, batch
sizes out of order. Every reader of a manifest may rely on what is checked here.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polarprune.errors import BundleError, quote

if TYPE_CHECKING:
    from polarprune.manifest import (
        Accuracy,
        BatchProfile,
        CertificateLink,
        EngineInfo,
        Manifest,
        Preprocessing,
        TensorSpec,
    )

DTYPES = {
    *("float16", "bfloat16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
}
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
RUNTIMES = ("tensorrt", "tensorrt_rtx")
LARGEST_SIDE = 1 << 16
"""Pixels."""
LARGEST_BATCH = 1 << 20
LARGEST_TENSOR = 1 << 28
"""Elements for one image: 1 GiB of float32."""
LARGEST_FILE = 1 << 32
"""Bytes; an ONNX file cannot have more than 2 GiB."""
MOST = 1 << 16
"""Tensors, classes, links or files."""


def check_manifest(manifest: "Manifest") -> None:
    """Refuses what cannot be meant.

    Raises:
        BundleError: the field, what it says, and what it may say.
    """
    _one_of("precision", manifest.precision, PRECISIONS)
    for name, entry in manifest.files.items():
        where = f"the size of {quote(name)}"
        _in_range(where, entry.size, 0, LARGEST_FILE)
        if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            _refuse(f"the sha256 of {quote(name)}", entry.sha256, "64 hexadecimal digits")
    for kind in ("inputs", "outputs"):
        tensors: Sequence[TensorSpec] = getattr(manifest, kind)
        if not tensors:
            _refuse(kind, [], "at least one tensor")
        _check_tensors(kind, tensors)
    _check_profile("batch", manifest.batch)
    for kind in ("classes", "certificate", "files"):
        _in_range(f"the number of {kind}", len(getattr(manifest, kind)), 0, MOST)
    if manifest.preprocessing is not None:
        _check_preprocessing(manifest.preprocessing)
    if manifest.engine is not None:
        _check_engine(manifest.engine)
    for i, link in enumerate(manifest.certificate):
        _check_link(f"certificate[{i}]", link)
    for accuracy in (manifest.accuracy, manifest.accuracy_before):
        if accuracy is not None:
            _check_accuracy(accuracy)


def _check_tensors(kind: str, tensors: "Sequence[TensorSpec]") -> None:
    _in_range(f"the number of {kind}", len(tensors), 0, MOST)
    names = [tensor.name for tensor in tensors]
    for i, tensor in enumerate(tensors):
        where = f"{kind}[{i}]"
        if not tensor.name or not tensor.name.isprintable() or tensor.name in names[:i]:
            _refuse(f"{where}.name", tensor.name, "a name of its own")
        _one_of(f"{where}.dtype", tensor.dtype, sorted(DTYPES))
        elements = 1
        for side in tensor.shape:
            if side != -1:
                _in_range(f"{where}.shape", side, 1, LARGEST_TENSOR)
                elements *= side
            if elements > LARGEST_TENSOR:
                _refuse(f"{where}.shape", tensor.shape, f"at most {LARGEST_TENSOR} elements")


def _check_profile(where: str, batch: "BatchProfile") -> None:
    if not 1 <= batch.min <= batch.opt <= batch.max <= LARGEST_BATCH:
        words = f"{batch.min}:{batch.opt}:{batch.max}"
        _refuse(where, words, f"1 <= min <= opt <= max <= {LARGEST_BATCH}")


def _check_preprocessing(steps: "Preprocessing") -> None:
    for field in ("height", "width", "resize_side"):
        _in_range(f"preprocessing.{field}", getattr(steps, field), 1, LARGEST_SIDE)
    if not 1 <= len(steps.mean) == len(steps.std) <= 4:
        _refuse("preprocessing.mean and std", (steps.mean, steps.std), "a number a channel")
    if not all(abs(mean) <= 1e6 for mean in steps.mean):
        _refuse("preprocessing.mean", steps.mean, "numbers of a moderate size")
    if not all(1e-6 <= std <= 1e6 for std in steps.std):
        _refuse("preprocessing.std", steps.std, "positive numbers of a moderate size")
    _one_of("preprocessing.layout", steps.layout, ("NCHW", "NHWC"))
    _one_of("preprocessing.color", steps.color, ("RGB", "BGR"))
    # What every loader here does; said for those who write another.
    _one_of("preprocessing.interpolation", steps.interpolation, ("bilinear",))
    _one_of("preprocessing.crop_mode", steps.crop_mode, ("center",))
    if not (steps.exif_transpose and steps.antialias):
        _refuse("preprocessing.exif_transpose and antialias", False, "true")
    if abs(255 * steps.scale - 1) > 1e-6:
        _refuse("preprocessing.scale", steps.scale, "1 / 255")


def _check_engine(engine: "EngineInfo") -> None:
    _one_of("engine.runtime", engine.runtime, RUNTIMES)
    if not engine.profiles:
        _refuse("engine.profiles", [], "at least one")
    for i, profile in enumerate(engine.profiles):
        _check_profile(f"engine.profiles[{i}]", profile)
    for capability in engine.compute_capabilities:
        if not re.fullmatch(r"\d{1,3}\.\d", capability):
            _refuse("engine.compute_capabilities", capability, "versions as 8.9")
    _check_tensors("engine.inputs", engine.inputs)
    _check_tensors("engine.outputs", engine.outputs)


def _check_link(where: str, link: "CertificateLink") -> None:
    _in_range(f"{where}.n", link.n, 0, 2**40)
    if link.inputs is not None:
        _one_of(f"{where}.inputs", link.inputs, ("random", "real"))
    for field in ("tolerance", "max_abs_error", "max_rel_error"):
        value = getattr(link, field)
        if value is not None and value < 0:
            _refuse(f"{where}.{field}", value, "at least 0")
    if link.top1_agreement is not None:
        _share(f"{where}.top1_agreement", link.top1_agreement)


def _check_accuracy(accuracy: "Accuracy") -> None:
    _in_range("accuracy.n", accuracy.n, 1, 2**40)
    for name, value in accuracy.figures.items():
        _share(f"accuracy.{name}", value)


def _share(where: str, value: float) -> None:
    if not 0 <= value <= 1:
        _refuse(where, value, "from 0 to 1")


def _in_range(where: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        _refuse(where, value, f"from {low} to {high}")


def _one_of(where: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        _refuse(where, value, f"one of {', '.join(allowed)}")


def _refuse(where: str, got: object, wanted: str) -> None:
    raise BundleError(f"manifest.json: {where} is {quote(got)}, it must be {wanted}; export again")
