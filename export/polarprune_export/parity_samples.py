"""A few inputs with their reference outputs, kept in the bundle: `parity.safetensors`.

With them a bundle can be checked again where neither torch nor the data set is, for example on the
machine that serves it.
"""

from collections.abc import Sequence

import numpy as np
from safetensors.numpy import load, save

from polarprune.errors import BundleError, quote
from polarprune.manifest import Manifest, Preprocessing, TensorSpec
from polarprune_export.onnx_session import Array

SAMPLES_NAME = "parity.safetensors"
MOST_IMAGES = 64

Samples = tuple[Array, list[Array]]
"""Inputs as the network takes them, and all reference outputs."""


def normalise_pixels(pixels: Array, preprocessing: Preprocessing) -> Array:
    """uint8 (n, h, w, 3) as the network's float32 input (n, 3, h, w)."""
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def pack_samples(
    random: tuple[Array, Sequence[Array]], real: tuple[Array, Sequence[Array]] | None
) -> bytes:
    """The file's content.

    Args:
        random: inputs as the network takes them, and all reference outputs.
        real: pixels, uint8 (n, h, w, 3), and all reference outputs; or None.
    """
    tensors = {"random_inputs": random[0]}
    tensors |= {f"random_output_{i}": output for i, output in enumerate(random[1])}
    if real is not None:
        tensors["real_pixels"] = real[0]
        tensors |= {f"real_output_{i}": output for i, output in enumerate(real[1])}
    # References are rounded to float32: a last bit of float64 depends on the number of threads.
    return save(
        {
            name: np.ascontiguousarray(array.astype(np.float32) if array.dtype == float else array)
            for name, array in sorted(tensors.items())
        }
    )


def unpack_samples(content: bytes, manifest: Manifest) -> dict[str, Samples]:
    """Inputs as the network takes them and references, for "random" and, if stored, for "real".

    Raises:
        BundleError: the content is not what `pack_samples` makes, or is of another network.
    """
    try:
        tensors = load(content)
    except Exception as error:  # of the library's own, and others for types that numpy lacks
        raise _refuse(f"cannot be read ({quote(str(error))})") from None
    samples = {"random": (_tensor(tensors, "random_inputs"), _outputs(tensors, manifest, "random"))}
    if "real_pixels" in tensors:
        if manifest.preprocessing is None:
            raise _refuse("has real images, and the manifest no preprocessing for them")
        pixels = tensors["real_pixels"]
        channels = len(manifest.preprocessing.mean)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != channels:
            raise _refuse(f"has pixels {_words(pixels)}, not uint8 (n, h, w, {channels})")
        inputs = normalise_pixels(pixels, manifest.preprocessing)
        samples["real"] = (inputs, _outputs(tensors, manifest, "real"))
    known = (
        1 + len(samples["random"][1]) + (1 + len(samples["real"][1]) if "real" in samples else 0)
    )
    if len(tensors) != known:
        raise _refuse(f"holds {len(tensors)} tensors, {known} are known")
    for kind, (inputs, outputs) in samples.items():
        _check_inputs(kind, inputs, outputs, manifest.inputs[0])
    return samples


def _outputs(tensors: dict[str, Array], manifest: Manifest, kind: str) -> list[Array]:
    return [_tensor(tensors, f"{kind}_output_{i}") for i in range(len(manifest.outputs))]


def _tensor(tensors: dict[str, Array], name: str) -> Array:
    if name not in tensors:
        raise _refuse(f"lacks {name!r}")
    return tensors[name]


def _check_inputs(kind: str, inputs: Array, outputs: list[Array], spec: TensorSpec) -> None:
    fits = inputs.ndim == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, inputs.shape, strict=True)
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
