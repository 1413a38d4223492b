"""A few inputs with their reference outputs, kept in the bundle: `parity.safetensors`.

With them a bundle can be checked again where neither torch nor the data set is, for example on the
machine that serves it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from polarprune.errors import BundleError
from polarprune.manifest import Preprocessing
from polarprune_export.onnx_session import Array

if TYPE_CHECKING:
    from polarprune_export.probes import Probe

SAMPLES_NAME = "parity.safetensors"
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


def unpack_samples(
    content: bytes, preprocessing: Preprocessing | None
) -> dict[str, tuple[Array, list[Array]]]:
    """Inputs as the model takes them and references, for "random" and "real", where stored.

    Raises:
        BundleError: the content is not what `pack_samples` makes.
    """
    samples: dict[str, tuple[Array, list[Array]]] = {}
    try:
        tensors = load(content)
        for kind in KINDS:
            if f"{kind}_inputs" in tensors:
                samples[kind] = (tensors[f"{kind}_inputs"], _outputs(tensors, kind))
            elif f"{kind}_pixels" in tensors:
                if preprocessing is None:
                    raise KeyError("preprocessing")
                pixels = tensors[f"{kind}_pixels"]
                inputs = (
                    pixels if preprocessing.embedded else normalise_pixels(pixels, preprocessing)
                )
                samples[kind] = (inputs, _outputs(tensors, kind))
        if not samples:
            raise KeyError("samples")
    except (SafetensorError, KeyError) as error:
        raise BundleError(f"{SAMPLES_NAME} lacks {error}; export again") from None
    return samples


def _outputs(tensors: dict[str, Array], kind: str) -> list[Array]:
    count = sum(name.startswith(f"{kind}_output_") for name in tensors)
    return [tensors[f"{kind}_output_{i}"] for i in range(count)]
