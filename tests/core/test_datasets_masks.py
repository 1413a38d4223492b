"""Folders of images and label images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_trees import write_pairs
from PIL import ExifTags, Image

from polarprune.datasets import Dataset, load_dataset, task_of
from polarprune.errors import ConfigError, DataError
from polarprune.tasks.segmentation import IGNORED


def _load(root: Path, **options: object) -> Dataset:
    return load_dataset(root, **{"task": "segmentation", "workers": 0, **options})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs")


def _label(tree: Path, number: int) -> np.ndarray:
    return np.asarray(Image.open(tree / "label" / f"{number:02}.png"))


def test_every_fifth_image_is_held_out_and_shown_as_it_is(tree: Path) -> None:
    data = _load(tree)
    assert (len(data.train), len(data.test), data.image_size) == (8, 2, 32)
    assert (data.classes, data.task) == (["background", "foreground"], "segmentation")
    [(images, labels)] = list(data.test.batches(4, shuffle_seed=None, augment=False))
    pixels, again = data.test.raw(4)
    for place, number in enumerate((4, 9)):
        expected = np.asarray(Image.open(tree / "image" / f"{number:02}.png"))
        assert np.array_equal(pixels[place].numpy(), expected)
        assert np.array_equal(labels[place].numpy(), _label(tree, number) == 255)
    assert torch.equal(labels, again)
    normalised = (pixels.float() / 255 - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(images, normalised.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


def test_training_crops_hold_image_and_label_together(tree: Path) -> None:
    data = _load(tree, crop_size=16)
    seen = 0
    for images, labels in data.train.batches(4, shuffle_seed=1, augment=True):
        assert images.shape[2:] == labels.shape[1:] == (16, 16)
        pixels = images * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(
            3, 1, 1
        )
        bright = pixels[:, 0] > 0.42  # the discs are red here; noise ends at 60 / 255
        inside = labels == 1
        seen += int(inside.sum())
        assert float((bright == inside)[labels != IGNORED].float().mean()) > 0.93
    assert seen > 100


def test_the_seed_decides_crops_and_order_and_a_part_is_a_part(tree: Path) -> None:
    data = _load(tree, crop_size=16)
    one, two, other = (
        list(data.train.batches(4, shuffle_seed=seed, augment=True)) for seed in (3, 3, 4)
    )
    assert all(torch.equal(a[i], b[i]) for a, b in zip(one, two, strict=True) for i in (0, 1))
    assert not torch.equal(one[0][0], other[0][0])
    [_, later] = one
    [(images, labels)] = data.train.batches(4, shuffle_seed=3, augment=True, first=1, part=(1, 2))
    assert torch.equal(images, later[0][1::2])
    assert torch.equal(labels, later[1][1::2])


def test_a_crop_beyond_the_image_belongs_to_no_class(tree: Path) -> None:
    data = _load(tree, image_size=32, crop_size=32)
    labels = torch.cat([b[1] for b in data.train.batches(8, shuffle_seed=0, augment=True)] * 1)
    assert set(labels.unique().tolist()) <= {0, 1, IGNORED}
    assert bool((labels == IGNORED).any())  # some were made smaller than their crop


def test_other_values_are_class_indices_and_255_is_none(tmp_path: Path) -> None:
    tree = write_pairs(tmp_path / "pairs", values=(0, 1, 3))
    border = np.array(_label(tree, 0))
    border[:2] = 255
    Image.fromarray(border).save(tree / "label" / "00.png")
    data = _load(tree)
    assert data.classes == ["0", "1", "2", "3"]
    _, whole = next(data.train.batches(8, shuffle_seed=None, augment=False))
    assert bool((whole[0, :2] == IGNORED).all())


def test_a_palette_and_grey_in_three_channels_are_read(tree: Path) -> None:
    first = Image.fromarray((_label(tree, 0) > 0).astype(np.uint8) * 255, "L")
    first.convert("1").save(tree / "label" / "00.png")
    second = Image.open(tree / "label" / "01.png")
    second.convert("RGB").save(tree / "label" / "01.png")
    assert _load(tree).classes == ["background", "foreground"]


def test_splits_of_ones_own_are_taken(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data" / "train", count=6)
    write_pairs(tmp_path / "data" / "val", count=3, seed=1)
    data = _load(tmp_path / "data")
    assert (len(data.train), len(data.test)) == (6, 3)
    assert task_of(tmp_path / "data") == "segmentation"


def test_images_of_mixed_sizes_are_cut_to_a_square(tree: Path, tmp_path: Path) -> None:
    other = write_pairs(tmp_path / "large", count=2, side=48)
    for kind in ("image", "label"):
        shutil.copy(other / kind / "01.png", tree / kind / "04.png")
    data = _load(tree, image_size=24)
    images, labels = next(data.test.batches(2, shuffle_seed=None, augment=False))
    assert images.shape[2:] == labels.shape[1:] == (24, 24)
    assert _load(tree).image_size == 256


def _break(kind: str):
    def cut(tree: Path) -> None:
        file = tree / kind / "03.png"
        file.write_bytes(file.read_bytes()[:60])

    return cut


def _color(tree: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (32, 32, 3)).astype(np.uint8)).save(
        tree / "label" / "03.png"
    )


def _labels(tree: Path) -> list[Path]:
    return sorted((tree / "label").iterdir())


def _write(file: Path, values: np.ndarray, kind: str = "png") -> None:
    file.unlink()
    Image.fromarray(values).save(file.with_suffix(f".{kind}"))


def _turned(file: Path) -> None:
    """The same picture, stored so that a viewer has to turn it by 90 degrees."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.open(file)
    image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)


def test_image_and_label_are_turned_together(tree: Path) -> None:
    upright = [next(_load(tree).test.batches(2, shuffle_seed=None, augment=False))]
    for kind in ("image", "label"):
        _turned(tree / kind / "04.png")
        assert np.asarray(Image.open(tree / kind / "04.png")).any()
    turned = [next(_load(tree).test.batches(2, shuffle_seed=None, augment=False))]
    for (images, labels), (again, labels_again) in zip(upright, turned, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (512, 256), (500, 256), (256, 64), (40, 64),
        pytest.param(1024, 256, marks=pytest.mark.study),
    ],
)  # fmt: skip
def test_labels_stay_where_their_image_is(tmp_path: Path, before: int, after: int) -> None:
    """The centre of a disc, in the image and in its label, after both have been resized."""
    tree = write_pairs(tmp_path / "pairs", side=before)
    y, x = np.mgrid[:before, :before]
    inside = (x - 0.553 * before) ** 2 + (y - 0.407 * before) ** 2 < (0.311 * before) ** 2
    for kind in ("image", "label"):
        Image.fromarray(inside.astype(np.uint8) * 255).save(tree / kind / "04.png")
    pixels, labels = _load(tree, image_size=after).test.raw(2)
    rows, columns = torch.meshgrid(torch.arange(after), torch.arange(after), indexing="ij")
    centres = [
        [float((weight * place).sum() / weight.sum()) for place in (rows, columns)]
        for weight in (pixels[0, ..., 0].double(), labels[0].double())
    ]
    assert centres[0] == pytest.approx(centres[1], abs=0.15)


BAD = {
    "a broken image": (_break("image"), "cannot read image .*03.png"),
    "a broken label": (_break("label"), "cannot read label image .*03.png"),
    "a label in colours": (_color, r"label image .*03.png is \(32, 32, 3\)"),
    "an image without a label": (
        lambda tree: (tree / "label" / "02.png").unlink(), "02.png has no label of its name"
    ),
    "a label without an image": (
        lambda tree: (tree / "image" / "02.png").unlink(), "02.png has no image of its name"
    ),
    "two files of one name": (
        lambda tree: shutil.copy(tree / "image" / "02.png", tree / "image" / "02.jpg"),
        "02.jpg and 02.png have one name",
    ),
    "one class": (
        lambda tree: [Image.new("L", (32, 32)).save(f) for f in (tree / "label").iterdir()],
        "know one class only",
    ),
    "no labels": (lambda tree: shutil.rmtree(tree / "label"), "has no folder label/"),
    "labels as JPEG": (
        lambda tree: [
            (Image.open(f).save(f.with_suffix(".jpg")), f.unlink())
            for f in list((tree / "label").iterdir())
        ],
        "label image .* is a JPEG, which invents values",
    ),
    "two classes by another number": (
        lambda tree: [_write(f, np.asarray(Image.open(f)) // 2) for f in _labels(tree)],
        r"have 2 values up to 127 \(0, 127, ...\); number the classes 0, 1, 2",
    ),
    "a negative class": (
        lambda tree: _write(
            (tree / "label" / "03.png"), np.asarray(_label(tree, 3), np.int32) - 1, "tiff"
        ),
        "label image .*03.tiff is .* int32",
    ),
    "an image that is stored turned": (
        lambda tree: _turned(tree / "image" / "03.png"),
        "03.png is stored turned by its EXIF tag and 03.png is not",
    ),
    "a label that is stored turned": (
        lambda tree: _turned(tree / "label" / "03.png"),
        "03.png is stored turned by its EXIF tag and 03.png is not",
    ),
    "another size": (
        lambda tree: Image.new("L", (8, 32)).save(tree / "label" / "02.png"),
        "02.png is 32 x 32 pixels, its label image 8 x 32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_tree_is_one_line(tree: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(tree)
    with pytest.raises(DataError, match=message) as raised:
        _load(tree)
    assert "\n" not in str(raised.value)


def test_too_few_and_unfit_data_are_named(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 3 images; give 5 or more"):
        _load(write_pairs(tmp_path / "few", count=3))
    with pytest.raises(ConfigError, match="digits has one class an image"):
        load_dataset("digits", task="segmentation")
    with pytest.raises(DataError, match="give --task segmentation with it"):
        load_dataset(tree)
    with pytest.raises(ConfigError, match="--crop-size 64 is larger than the images, 32 pixels"):
        _load(tree, crop_size=64)
    with pytest.raises(ConfigError, match="--crop-size belongs to --task segmentation"):
        load_dataset("digits", crop_size=8)
