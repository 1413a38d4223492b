"""A few inputs with their reference outputs, kept in the bundle: `parity.safetensors`.

With them a bundle can be checked again where neither torch nor the data set is, for example on the
machine that serves it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load, save

from polarprune.errors import BundleError, quote
from polarprune.manifest import Manifest, Preprocessing, TensorSpec
from polarprune_export.onnx_session import Array

if TYPE_CHECKING:
    from polarprune_export.probes import Probe

SAMPLES_NAME = "parity.safetensors"
MOST_IMAGES = 64

Stored = tuple[Array, list[Array]]
"""Inputs as the model takes them, and all reference outputs."""
KINDS = ("random", "real")


def normalise_pixels(pixels: Array, preprocessing: Preprocessing) -> Array:
    """uint8 (n, h, w, 3) as the network's float32 input (n, 3, h, w)."""
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def restore_pixels(images: Array, preprocessing: Preprocessing) -> Array:
    """The float32 input (n, 3, h, w) as the nearest uint8 (n, h, w, 3)."""
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    pixels = (images.transpose(0, 2, 3, 1) * std + mean) * np.float32(255)
    return np.ascontiguousarray(pixels.round().clip(0, 255).astype(np.uint8))


def pack_samples(probes: Iterable["Probe"]) -> bytes:
    """The file's content: pixels where there are such, else the network's inputs."""
    tensors: dict[str, Array] = {}
    for probe in probes:
        if probe.pixels is None:
            tensors[f"{probe.kind}_inputs"] = probe.images
        else:
            tensors[f"{probe.kind}_pixels"] = probe.pixels
        tensors |= {f"{probe.kind}_output_{i}": out for i, out in enumerate(probe.reference)}
    # References are rounded to float32: a last bit of float64 depends on the number of threads.
    return save(
        {
            name: np.ascontiguousarray(array.astype(np.float32) if array.dtype == float else array)
            for name, array in sorted(tensors.items())
        }
    )


def unpack_samples(content: bytes, manifest: Manifest) -> dict[str, Stored]:
    """Inputs as the model takes them and references, for "random" and "real", where stored.

    Raises:
        BundleError: the content is not what `pack_samples` makes, or is of another network.
    """
    try:
        tensors = load(content)
    except Exception as error:  # of the library's own, and others for types that numpy lacks
        raise _refuse(f"cannot be read ({quote(str(error))})") from None
    samples = {}
    for kind in KINDS:
        if f"{kind}_inputs" in tensors:
            inputs = tensors[f"{kind}_inputs"]
        elif f"{kind}_pixels" in tensors:
            inputs = _from_pixels(tensors[f"{kind}_pixels"], manifest.preprocessing)
        else:
            continue
        samples[kind] = (inputs, _outputs(tensors, manifest, kind))
    needed = "real" if manifest.precision == "int8" else "random"
    if needed not in samples:
        raise _refuse(f"lacks '{needed}_inputs'")
    known = sum(1 + len(outputs) for _, outputs in samples.values())
    if len(tensors) != known:
        raise _refuse(f"holds {len(tensors)} tensors, {known} are known")
    for kind, (inputs, outputs) in samples.items():
        _check_inputs(kind, inputs, outputs, manifest.inputs[0])
    return samples


def _from_pixels(pixels: Array, preprocessing: Preprocessing | None) -> Array:
    if preprocessing is None:
        raise _refuse("has pixels, and the manifest no preprocessing for them")
    channels = len(preprocessing.mean)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != channels:
        raise _refuse(f"has pixels {_words(pixels)}, not uint8 (n, h, w, {channels})")
    return pixels if preprocessing.embedded else normalise_pixels(pixels, preprocessing)


def _outputs(tensors: dict[str, Array], manifest: Manifest, kind: str) -> list[Array]:
    return [_tensor(tensors, f"{kind}_output_{i}") for i in range(len(manifest.outputs))]


def _tensor(tensors: dict[str, Array], name: str) -> Array:
    if name not in tensors:
        raise _refuse(f"lacks {name!r}")
    return tensors[name]


def _check_inputs(kind: str, inputs: Array, outputs: list[Array], spec: TensorSpec) -> None:
    # The first axis is free: a batch size that is fixed is filled up.
    fits = inputs.ndim == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape[1:], inputs.shape[1:], strict=True)
    )
    if not fits or inputs.dtype.name != spec.dtype:
        stated = f"{spec.dtype} of shape {quote(spec.shape)}"
        raise _refuse(f"has {kind} inputs {_words(inputs)}, the manifest says {stated}")
    if not 1 <= len(inputs) <= MOST_IMAGES:  # none would be equal to anything
        raise _refuse(f"has {len(inputs)} {kind} inputs, from 1 to {MOST_IMAGES} are compared")
    for output in outputs:
        if output.dtype.kind not in "fiu" or output.ndim < 1 or len(output) != len(inputs):
            raise _refuse(f"has {kind} outputs {_words(output)} for {len(inputs)} inputs")


def _words(array: Array) -> str:
    return f"{array.dtype} of shape {quote(array.shape)}"


def _refuse(words: str) -> BundleError:
    return BundleError(f"{SAMPLES_NAME} {words}; export again")
