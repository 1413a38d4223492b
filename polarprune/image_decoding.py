"""Any image to 8-bit RGB, the way a viewer would show it.

Training reads its images with this, and so does a server, which has no torch.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from polarprune.errors import DataError, first_line

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
)


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """Silence Pillow's warnings about odd metadata and large images of files that decode well.

    To be entered once around a pool of threads, never inside it: filters belong to the process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_rgb(path: str | Path) -> Image.Image:
    """The image of a file (its first frame), turned upright by its EXIF tag, in mode RGB.

    Raises:
        DataError: the file cannot be opened or decoded; it is named.
    """
    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except Exception as error:
        # Decoders raise nearly every type there is on damaged files.
        raise unreadable(f"image {path}", error) from error


def unreadable(what: str, error: Exception) -> DataError:
    """The error for a file, `what`, that cannot be decoded."""
    return DataError(f"cannot read {what}: {first_line(error)}; repair or remove it")


def upright_rgb(image: Image.Image) -> Image.Image:
    """The first frame of an opened image, turned upright by its EXIF tag, in mode RGB.

    Raises:
        Exception: nearly every type there is, on damaged files.
    """
    ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; itself where it is in it already.

    1. 16-bit grey keeps its high byte (Pillow's own conversion clips at 255).
    2. Transparency, of a palette too, is laid over white.
    3. Everything else (grey, palette, CMYK, YCbCr, Lab) as Pillow converts it.

    Raises:
        ValueError: float pixels, or integers beyond 16 bits, which have no fixed range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "F":
        raise ValueError("float pixels have no fixed range")
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError("pixels of more than 16 bits have no fixed range")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        # Rounds as Image.alpha_composite over white does, in half of the memory.
        shown = Image.new("RGB", layer.size, (255, 255, 255))
        shown.paste(layer, mask=layer)
        return shown
    return image.convert("RGB")
