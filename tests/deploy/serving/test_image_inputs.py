"""A server reads images as training does, whatever they are; what is no image is refused."""

import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from served_digits import encoded, slow_pixels

from polarprune.datasets import load_dataset
from polarprune.image_decoding import quiet_decoding
from polarprune.manifest import Preprocessing, TensorSpec
from polarprune_deploy.serving.image_inputs import image_input, read_image
from polarprune_deploy.serving.request_errors import (
    BAD,
    TOO_LARGE,
    UNSUPPORTED,
    RequestError,
)

FLOAT = TensorSpec("input", "float32", (-1, 3, 48, 48))
PIXELS = 50_000_000
ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """As the server is."""
    with quiet_decoding():
        yield


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A photograph of 640 x 427 pixels."""
    package = find_spec("sklearn")  # importing it takes seconds
    if package is None or package.origin is None:
        pytest.skip("scikit-learn, which has photographs, is absent")
    image = Image.open(Path(package.origin).parent / "datasets" / "images" / "flower.jpg")
    return image.convert("RGB")


def _turned(image: Image.Image, orientation: int) -> Image.Exif:
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.fixture(scope="module")
def odd_files(photo: Image.Image) -> dict[str, bytes]:
    """JPEG and PNG files of odd sizes and of every mode that they come in."""
    crop = photo.crop((150, 60, 483, 261))
    grey = np.asarray(photo.convert("L").crop((200, 30, 371, 160)))
    files = {
        "wide.jpg": encoded(crop, "JPEG", quality=91),
        "tall.png": encoded(photo.crop((200, 7, 301, 420))),
        "small.png": encoded(photo.crop((300, 200, 322, 231))),
        "square.png": encoded(photo.crop((300, 200, 348, 248))),
        "progressive.jpg": encoded(crop, "JPEG", progressive=True, subsampling=2),
        "grey.jpg": encoded(crop.convert("L"), "JPEG"),
        "grey.png": encoded(crop.convert("L")),
        "bilevel.png": encoded(crop.convert("1")),
        "palette.png": encoded(crop.quantize(64)),
        "see-through-palette.png": encoded(crop.quantize(64), transparency=bytes(range(0, 256, 4))),
        "see-through-grey.png": encoded(crop.convert("LA")),
        "one-colour-through.png": encoded(crop, transparency=crop.getpixel((4, 4))),
        "sixteen-bits.png": encoded(Image.fromarray(grey.astype(np.uint16) * 251 + 99)),
        "cmyk.jpg": encoded(crop.convert("CMYK"), "JPEG"),
        "turned.png": encoded(crop, exif=_turned(crop, 8)),
        "animated.png": encoded(crop, save_all=True, append_images=[crop.rotate(180)]),
        "pair.jpg": encoded(crop, "MPO", save_all=True, append_images=[crop.rotate(180)]),
    }
    layer = crop.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(layer.size))
    files["see-through.png"] = encoded(layer)
    for orientation in range(1, 9):
        exif = _turned(crop, orientation)
        files[f"turned-{orientation}.jpg"] = encoded(crop, "JPEG", exif=exif)
    return files


def test_every_kind_of_file_becomes_the_input_that_the_test_set_makes_of_it(
    odd_files: dict[str, bytes], tmp_path: Path
) -> None:
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "one.png").write_bytes(odd_files["tall.png"])
    for name, content in odd_files.items():
        (tmp_path / "test" / "b" / name).write_bytes(content)
    data = load_dataset(tmp_path, image_size=48, workers=0)
    assert data.resize_side > 48, "nothing would be cropped"
    steps = Preprocessing(48, 48, data.resize_side, data.mean, data.std)
    raw = Preprocessing(48, 48, data.resize_side, data.mean, data.std, "NHWC", embedded=True)
    paths = sorted((tmp_path / "test").rglob("*.*g"))
    wanted, _ = next(iter(data.test.batches(len(paths), shuffle_seed=None, augment=False)))
    pixels, _ = data.test.raw(len(paths))
    assert len(wanted) == len(pixels) == len(paths) == len(odd_files) + 2

    for path, image, exact in zip(paths, wanted.numpy(), pixels.numpy(), strict=True):
        content = path.read_bytes()
        found = image_input(content, steps, FLOAT, PIXELS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, image[None], atol=1e-6, err_msg=path.name)
        np.testing.assert_array_equal(
            image_input(content, raw, TensorSpec("input", "uint8", (-1, 48, 48, 3)), PIXELS),
            exact[None], err_msg=path.name,
        )  # fmt: skip


def test_real_test_images_of_a_set_in_memory_become_its_batches(
    shared: Path, tmp_path: Path
) -> None:
    mosaic = Image.open(shared / "data" / "cifar10" / "test.webp").crop((0, 0, 3200, 32))
    tiles = [mosaic.convert("RGB").crop((32 * i, 0, 32 * i + 32, 32)) for i in range(40)]
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True)
        tiles[0].save(tmp_path / folder / "00.png")
    for i, tile in enumerate(tiles):
        tile.save(tmp_path / "test" / "a" / f"{i:02}.png")
    data = load_dataset(tmp_path)
    steps = Preprocessing(32, 32, data.resize_side, data.mean, data.std)
    wanted, _ = next(iter(data.test.batches(99, shuffle_seed=None, augment=False)))
    for tile, image in zip(tiles, wanted.numpy()[: len(tiles)], strict=True):
        found = image_input(encoded(tile), steps, FLOAT, PIXELS)
        np.testing.assert_allclose(found, image[None], atol=1e-6)


@pytest.mark.parametrize("size", [(333, 201), (48, 131), (17, 23), (640, 427)])
def test_pixels_are_within_a_level_of_means_taken_one_by_one(
    photo: Image.Image, size: tuple[int, int]
) -> None:
    image = photo.crop((0, 0, *size))
    steps = Preprocessing(48, 32, 51, (0, 0, 0), (1, 1, 1), "NHWC", embedded=True)
    found = image_input(encoded(image), steps, FLOAT, PIXELS)[0]
    assert abs(found.astype(float) - slow_pixels(image, steps)).max() <= 1.0


@pytest.mark.parametrize(
    ("dtype", "wanted"), [("float16", "float16"), ("bfloat16", "float32"), ("float32", "float32")]
)
def test_the_input_is_of_the_type_that_runners_take(
    photo: Image.Image, dtype: str, wanted: str
) -> None:
    steps = Preprocessing(8, 8, 9, (0.5, 0.4, 0.3), (0.2, 0.3, 0.2))
    content = encoded(photo, "JPEG")
    found = image_input(content, steps, TensorSpec("x", dtype, (-1, 3, 8, 8)), PIXELS)
    assert found.dtype == wanted
    exact = image_input(content, steps, TensorSpec("x", "float32", (-1, 3, 8, 8)), PIXELS)
    np.testing.assert_allclose(found, exact, rtol=1e-3)


def test_layout_and_order_of_colours_are_those_of_the_manifest(photo: Image.Image) -> None:
    content = encoded(photo, "JPEG")

    def found(**changes: str) -> np.ndarray:
        steps = Preprocessing(8, 12, 14, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), **changes)
        return image_input(content, steps, FLOAT, PIXELS)

    plain = found()
    assert plain.shape == (1, 3, 8, 12)
    np.testing.assert_array_equal(found(layout="NHWC"), plain.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(found(color="BGR"), plain[:, ::-1])


def test_what_a_crop_asks_for_beyond_the_image_is_black_as_in_training(photo: Image.Image) -> None:
    from torchvision.transforms import v2

    steps = Preprocessing(21, 24, 13, (0, 0, 0), (1, 1, 1), "NHWC", embedded=True)
    image = photo.crop((0, 0, 131, 97))
    wanted = v2.Compose([v2.Resize(13, antialias=True), v2.CenterCrop((21, 24))])(image)
    np.testing.assert_array_equal(
        image_input(encoded(image), steps, FLOAT, PIXELS)[0], np.asarray(wanted)
    )


def _refused(content: bytes, most_pixels: int = PIXELS) -> tuple[str, str]:
    steps = Preprocessing(48, 48, 55, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    with pytest.raises(RequestError) as caught:
        image_input(content, steps, FLOAT, most_pixels)
    assert "\n" not in str(caught.value)
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, this is text", "what was sent is neither"),
        (b"GIF89a" + bytes(20), "a GIF file"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a WebP file"),
        (b"\0\0\0\x18ftypheic", "a HEIC, AVIF or video file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"\xff\xd8 almost", "what was sent is neither"),
    ],
)
def test_other_files_are_named_by_what_they_hold(content: bytes, words: str) -> None:
    kind, said = _refused(content)
    assert kind == UNSUPPORTED
    assert said == f"images must be JPEG or PNG; {'' if 'neither' in words else 'this is '}{words}"


def test_an_empty_body_is_told_what_to_send() -> None:
    kind, said = _refused(b"")
    assert kind == BAD
    assert "curl --data-binary @image.jpg" in said


@pytest.mark.parametrize("name", ["wide.jpg", "tall.png", "progressive.jpg", "turned.png"])
def test_a_file_that_is_cut_short_is_refused(odd_files: dict[str, bytes], name: str) -> None:
    content = odd_files[name]
    for share in (0.01, 0.3, 0.7, 0.95):
        kind, said = _refused(content[: max(12, int(share * len(content)))])
        assert kind == BAD
        assert said.startswith("the image is damaged or cut short")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


@pytest.mark.parametrize("side", [7_100, 11_000, 30_000, 2_000_000])
def test_a_decompression_bomb_is_refused_by_its_header_alone(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    bomb = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows)
    tracemalloc.start()
    kind, said = _refused(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kind == TOO_LARGE
    assert "50000000 at most are decoded" in said
    assert peak < 4 << 20


def test_the_bound_counts_pixels_and_not_bytes(photo: Image.Image) -> None:
    content = encoded(photo, "JPEG")
    assert read_image(content, 640 * 427).size == (640, 427)
    assert _refused(content, 640 * 427 - 1) == (
        TOO_LARGE, "the image has 640 x 427 pixels, 273279 at most are decoded",
    )  # fmt: skip


def test_a_strip_that_would_grow_beyond_the_bound_is_refused() -> None:
    kind, said = _refused(encoded(Image.new("L", (1_000_000, 1))))
    assert kind == TOO_LARGE
    assert "1000000 x 1 pixels is too narrow" in said


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_text_or_profile_that_unpacks_to_too_much_is_refused(kind: bytes) -> None:
    plain = encoded(Image.new("RGB", (64, 64)))
    packed = zlib.compress(bytes(20 << 20), 9)
    content = plain[:33] + _chunk(kind, b"name\0\0" + packed) + plain[33:]
    assert _refused(content)[0] == BAD


def test_usual_texts_and_profiles_are_no_hindrance(photo: Image.Image) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "x" * 100_000, zip=True)
    content = encoded(photo, pnginfo=texts, icc_profile=bytes(3000))
    np.testing.assert_array_equal(np.asarray(read_image(content, PIXELS)), np.asarray(photo))


def test_many_pieces_and_many_scans_are_refused_before_they_take_long(photo: Image.Image) -> None:
    png = encoded(photo)
    jpeg = encoded(photo.convert("L").resize((2000, 2000)), "JPEG", progressive=True)
    last = jpeg[jpeg.rfind(b"\xff\xda") : -2]
    start = time.monotonic()
    for hostile in (
        png[:33] + _chunk(b"none", b"") * 1_000_000 + png[33:],
        jpeg[:2] + b"\xff\xfe\0\2" * 1_000_000 + jpeg[2:],
        jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:],
        jpeg[:-2] + last * 1000 + jpeg[-2:],
    ):
        kind, said = _refused(hostile)
        assert kind == TOO_LARGE
        assert "too many" in said
    assert time.monotonic() - start < 5.0  # each of them took 10 seconds to minutes


def test_what_follows_a_jpeg_does_not_count(photo: Image.Image) -> None:
    film = np.random.default_rng(0).bytes(10 << 20)
    assert film.count(b"\xff\xda") > 100
    read = read_image(encoded(photo, "JPEG") + film, PIXELS)
    np.testing.assert_array_equal(read, read_image(encoded(photo, "JPEG"), PIXELS))


def test_damage_anywhere_gives_an_input_or_one_line_of_refusal(
    odd_files: dict[str, bytes],
) -> None:
    steps = Preprocessing(8, 8, 9, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    generator = np.random.default_rng(0)
    files = list(odd_files.values())
    outcomes = []
    for _ in range(600):
        content = bytearray(files[generator.integers(len(files))])
        for _ in range(generator.integers(1, 4)):
            place = generator.integers(len(content) if generator.random() < 0.5 else 100)
            content[place] = generator.integers(256)
        try:
            found = image_input(bytes(content), steps, FLOAT, PIXELS)
        except RequestError as error:
            outcomes.append((error.kind, str(error)))
        else:
            assert found.shape == (1, 3, 8, 8)
            outcomes.append(("input", ""))
    kinds = {kind for kind, _ in outcomes}
    assert {"input", BAD, UNSUPPORTED} <= kinds <= {"input", BAD, UNSUPPORTED, TOO_LARGE}
    assert not any("\n" in words for _, words in outcomes)
