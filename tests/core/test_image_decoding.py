"""Image files of every kind become the RGB that a viewer shows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polarprune.errors import DataError
from polarprune.image_decoding import read_rgb, to_rgb

_EXIF_ORIENTATION = 0x0112


def _colour(path: Path) -> tuple[int, ...]:
    image = read_rgb(path)
    assert image.mode == "RGB"
    colours = image.getcolors()
    assert colours is not None
    assert len(colours) == 1
    colour = colours[0][1]
    assert isinstance(colour, tuple)
    return colour


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "shown"),
    [
        ("RGB", (10, 20, 30), "png", (10, 20, 30)),
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (77, 255), "png", (77, 77, 77)),
        ("RGBA", (10, 20, 30, 255), "png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), "png", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), "png", (204, 204, 204)),
        ("LA", (0, 0), "png", (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), "tif", (0, 255, 255)),
        ("YCbCr", (76, 85, 255), "tif", (254, 0, 0)),
        ("I;16", 0x4D10, "png", (0x4D, 0x4D, 0x4D)),
        ("I;16", 0xFFFF, "tif", (255, 255, 255)),
        ("I", 0x4D10, "tif", (0x4D, 0x4D, 0x4D)),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], suffix: str, shown: tuple[int, ...]
) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (4, 4), colour).save(path)

    assert _colour(path) == shown


def test_palette_with_a_transparent_entry_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=bytes([255, 0]))

    shown = np.asarray(read_rgb(tmp_path / "p.png"))

    np.testing.assert_array_equal(shown, [[[200, 0, 0], [255, 255, 255]]])


def test_rgb_with_a_transparent_colour_is_laid_over_white(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "t.png", transparency=(1, 2, 3))

    assert _colour(tmp_path / "t.png") == (255, 255, 255)


def test_every_transparency_of_every_grey_is_what_pillow_composes_over_white() -> None:
    grey, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    layer = Image.fromarray(np.stack([grey, grey, grey, alpha], -1))
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    wanted = Image.alpha_composite(white, layer).convert("RGB")

    np.testing.assert_array_equal(np.asarray(to_rgb(layer)), np.asarray(wanted))


def test_jpeg_in_cmyk_keeps_its_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)

    red, green, blue = _colour(tmp_path / "c.jpg")

    # JPEG at its best quality is off by a level or two.
    assert red >= 253
    assert max(green, blue) <= 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_rotation_is_applied(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (32, 16), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 16, 16))  # the left half is black
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / f"turned.{suffix}", exif=exif)

    shown = read_rgb(tmp_path / f"turned.{suffix}")

    assert shown.size == (16, 32)
    pixels = np.asarray(shown)
    assert pixels[:14].mean() < 10  # the left edge is now the top
    assert pixels[18:].mean() > 245


def test_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])

    assert _colour(tmp_path / "a.gif") == (255, 0, 0)


@pytest.mark.parametrize(
    ("mode", "value", "reason"),
    [("F", 0.5, "float pixels"), ("I", 70_000, "more than 16 bits"), ("I", -1, "16 bits")],
)
def test_pixels_without_a_fixed_range_are_an_error(
    tmp_path: Path, mode: str, value: float, reason: str
) -> None:
    Image.new(mode, (2, 2), value).save(tmp_path / "wide.tif")

    with pytest.raises(DataError, match=rf"cannot read image .*wide\.tif: .*{reason}"):
        read_rgb(tmp_path / "wide.tif")


def test_decompression_bomb_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)

    with pytest.raises(DataError, match=r"cannot read image .*bomb\.png"):
        read_rgb(tmp_path / "bomb.png")
