"""A few inputs with their reference outputs, kept in the bundle: `parity.safetensors`.

With them a bundle can be checked again where neither torch nor the data set is, for example on the
machine that serves it.
"""

from collections.abc import Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from polarprune.errors import BundleError
from polarprune.manifest import Preprocessing
from polarprune_export.onnx_session import Array

SAMPLES_NAME = "parity.safetensors"


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


def unpack_samples(
    content: bytes, preprocessing: Preprocessing | None
) -> dict[str, tuple[Array, list[Array]]]:
    """Inputs as the network takes them and references, for "random" and, if stored, for "real".

    Raises:
        BundleError: the content is not what `pack_samples` makes.
    """
    try:
        tensors = load(content)
        samples = {"random": (tensors["random_inputs"], _outputs(tensors, "random"))}
        if "real_pixels" in tensors:
            if preprocessing is None:
                raise KeyError("preprocessing")
            inputs = normalise_pixels(tensors["real_pixels"], preprocessing)
            samples["real"] = (inputs, _outputs(tensors, "real"))
    except (SafetensorError, KeyError) as error:
        raise BundleError(f"{SAMPLES_NAME} lacks {error}; export again") from None
    return samples


def _outputs(tensors: dict[str, Array], kind: str) -> list[Array]:
    count = sum(name.startswith(f"{kind}_output_") for name in tensors)
    return [tensors[f"{kind}_output_{i}"] for i in range(count)]
