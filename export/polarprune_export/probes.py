"""Images that a network is compared on and that a precision is chosen by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from polarprune.errors import DataError
from polarprune.manifest import Preprocessing
from polarprune_export.onnx_session import Array
from polarprune_export.parity import RANDOM_IMAGES, RANDOM_SEED, count_for_side
from polarprune_export.parity_samples import normalise_pixels
from polarprune_export.precisions import Samples

if TYPE_CHECKING:
    from polarprune.datasets import Dataset

CALIBRATION_IMAGES = 512
HELD_OUT_IMAGES = 1024
"""Both of the training split; of images above 64 pixels a quarter."""


@dataclass(frozen=True)
class Probe:
    """Images that the shipped file is compared on.

    Attributes:
        kind: "random" or "real".
        pixels: uint8 (n, h, w, 3), where there are such.
        images: the same as the network takes them, (n, c, h, w) float32.
        reference: the network's outputs in float64.
    """

    kind: str
    pixels: Array | None
    images: Array
    reference: list[Array]

    def rows(self, chosen: Sequence[int]) -> "Probe":
        """Some of the images."""
        rows = list(chosen)
        pixels = None if self.pixels is None else self.pixels[rows]
        reference = [output[rows] for output in self.reference]
        return Probe(self.kind, pixels, self.images[rows], reference)


def random_pixels(shape: tuple[int, ...]) -> Array:
    """Uint8 (n, h, w, 3) for a network that takes (3, h, w); the last image is black."""
    _, height, width = shape
    generator = np.random.default_rng(RANDOM_SEED)
    count = count_for_side(RANDOM_IMAGES, width)
    pixels = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    pixels[-1] = 0  # noise is never black
    return pixels


def draw_samples(
    data: "Dataset | None", preprocessing: Preprocessing | None, shape: tuple[int, ...]
) -> Samples:
    """What a precision is chosen by: images of the training split, else random ones.

    The two sets are spread evenly over the split, and share no image.

    Args:
        shape: (c, h, w), which the network takes.

    Raises:
        DataError: the training split has a single image.
    """
    if data is None or preprocessing is None:
        count = count_for_side(RANDOM_IMAGES, shape[-1])
        generator = np.random.default_rng(RANDOM_SEED + 1)
        noise = generator.standard_normal((count, *shape)).astype(np.float32)
        return Samples(noise, noise[:0])
    wanted = count_for_side(CALIBRATION_IMAGES + HELD_OUT_IMAGES, data.image_size)
    pixels = data.train.raw(min(wanted, len(data.train)))[0].numpy()
    if len(pixels) < 2:
        raise DataError(f"the training split of {data.name} has {len(pixels)} images; 2 are needed")
    third = np.arange(len(pixels)) % 3 == 0
    calibration, held_out = (
        normalise_pixels(part, preprocessing) for part in (pixels[third], pixels[~third])
    )
    return Samples(calibration, held_out)
