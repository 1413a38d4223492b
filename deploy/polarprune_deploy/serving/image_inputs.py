"""From the bytes of a JPEG or PNG file to a model's input, as the bundle's manifest says.

The steps, and the pixels, are those of the data sets that the network was trained and tested with.
Only these two formats are read: each further decoder is one more that strangers can reach.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from polarprune.image_decoding import upright_rgb
from polarprune.manifest import Preprocessing, TensorSpec
from polarprune_deploy.backends.input_making import host_dtype
from polarprune_deploy.backends.runners import Array
from polarprune_deploy.serving.image_bombs import CountedFile, check_scans
from polarprune_deploy.serving.infer_requests import shown
from polarprune_deploy.serving.request_errors import (
    BAD,
    REJECTED,
    TOO_LARGE,
    UNSUPPORTED,
    RequestError,
)
from polarprune_export.parity_samples import normalise_pixels

# Imported for this: a format that is not known yet makes Pillow load all of its fifty plugins.
READ = (JpegImagePlugin.JpegImageFile.format, PngImagePlugin.PngImageFile.format)
# More than the 32 MiB up to which glibc keeps what is freed: the half gigabyte of a large image is
# given back to the system. Decoding takes up to a fifth longer. PILLOW_BLOCK_SIZE does the same.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]  # it has no types
CHANNELS = 3
JPEG_START = b"\xff\xd8\xff"
STARTS: Mapping[bytes, str] = MappingProxyType(
    {
        JPEG_START: "JPEG",
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"GIF8": "GIF",
        b"BM": "BMP",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"%PDF": "PDF",
    }
)


def image_input(content: bytes, steps: Preprocessing, spec: TensorSpec, most_pixels: int) -> Array:
    """One image as a batch of one, as the model takes it.

    Args:
        content: of a JPEG or PNG file.
        spec: of the model's input.
        most_pixels: that are decoded.

    Raises:
        RequestError: UNSUPPORTED, TOO_LARGE or BAD; what is wrong with the image.
    """
    pixels = fit_image(read_image(content, most_pixels), steps, most_pixels)[np.newaxis]
    if steps.color == "BGR":
        pixels = pixels[..., ::-1]
    if steps.embedded:
        return np.ascontiguousarray(pixels)
    images = normalise_pixels(pixels, steps)
    if steps.layout == "NHWC":
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return images.astype(host_dtype(spec.dtype), copy=False)


def read_image(content: bytes, most_pixels: int) -> Image.Image:
    """The picture of a file (its first frame), upright, in mode RGB.

    Raises:
        RequestError: UNSUPPORTED, TOO_LARGE or BAD; REJECTED where there is no memory for it.
    """
    _check_kind(content)
    if content.startswith(JPEG_START):
        check_scans(content)
    try:
        with Image.open(CountedFile(content), formats=READ) as image:
            if image.width * image.height > most_pixels:
                raise _too_many(f"{image.width} x {image.height} pixels", most_pixels)
            return upright_rgb(image)
    except RequestError:
        raise
    except Image.DecompressionBombError:
        raise _too_many("far more pixels", most_pixels) from None
    except MemoryError:
        raise RequestError(REJECTED, "there is no memory for the image just now", 1) from None
    except UnidentifiedImageError:  # whose words are of no use
        raise RequestError(BAD, "the image is damaged or cut short") from None
    except Exception as error:  # decoders raise nearly every type there is on damaged files
        words = shown(str(error) or type(error).__name__).strip("'\"")
        raise RequestError(BAD, f"the image is damaged or cut short ({words})") from None


def fit_image(image: Image.Image, steps: Preprocessing, most_pixels: int) -> Array:
    """uint8 (height, width, 3): the middle of the image, brought to size.

    What the crop asks for beyond the image is black, as in the data sets.

    Raises:
        RequestError: TOO_LARGE; the image is so narrow that bringing it to size would take more
            pixels than are decoded.
    """
    shorter, longer = sorted(image.size)
    other = int(steps.resize_side * longer / shorter)
    if steps.resize_side * other > max(most_pixels, steps.resize_side**2):
        raise RequestError(
            TOO_LARGE, f"an image of {image.width} x {image.height} pixels is too narrow to be "
            f"brought to a shorter side of {steps.resize_side}",
        )  # fmt: skip
    wide = image.width > image.height
    size = (other, steps.resize_side) if wide else (steps.resize_side, other)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = _start(image.width, steps.width), _start(image.height, steps.height)
    return np.asarray(image.crop((left, top, left + steps.width, top + steps.height)))


def _start(side: int, crop: int) -> int:
    """Where the crop begins; before the image where that is smaller."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def _check_kind(content: bytes) -> None:
    """By what the file holds; its name and the request's content type say nothing."""
    kind = next((kind for start, kind in STARTS.items() if content.startswith(start)), None)
    if kind in READ:
        return
    if not content:
        raise RequestError(
            BAD, "the body is empty; send the bytes of a JPEG or PNG file: "
            "curl --data-binary @image.jpg URL",
        )  # fmt: skip
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kind = "WebP"
    elif content[4:8] == b"ftyp":
        kind = "HEIC, AVIF or video"
    found = "what was sent is neither" if kind is None else f"this is a {kind} file"
    raise RequestError(UNSUPPORTED, f"images must be JPEG or PNG; {found}")


def _too_many(what: str, most: int) -> RequestError:
    return RequestError(TOO_LARGE, f"the image has {what}, {most} at most are decoded")
