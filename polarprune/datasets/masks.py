"""Images with a class for each pixel: `image/*` and `label/*` of equal names.

Either one such pair of folders, of which every fifth image is for testing, or one in `train/` and
one in `test/` (or `val/`). A label image has one channel. Where its values are 0 and 255 they are
two classes; otherwise they are class indices, and 255 belongs to no class (a border, as in Pascal
VOC). JPEG is refused for labels: it invents values.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vf

from polarprune.datasets.memory import statistics_of_chunks
from polarprune.datasets.splits import Dataset, Triple, held_out_folder, spread_indices
from polarprune.datasets.streaming import Sample, SeededFiles, StreamedSplit, in_threads
from polarprune.errors import ConfigError, DataError
from polarprune.image_decoding import IMAGE_SUFFIXES, quiet_decoding, read_rgb, unreadable
from polarprune.tasks.segmentation import IGNORED, Segmentation

PAIRS = "image/* and label/* of equal names"
_TEST_EVERY = 5
_LOOKED_AT = 200  # training images whose mean is taken
_DEFAULT_SIZE = 256
# Of 150 classes 38 lie in a few images; of 128, two are grey values.
_MOST_CLASSES_A_VALUE = 4
# Random sizes of what is cropped, around the image's own (the reference scripts of torchvision
# draw from 0.5 to 2.0 for many more epochs; ours).
_SCALES = (0.8, 1.25)


@dataclass(frozen=True)
class Pairs:
    """Image files and their label files, in the order of their names."""

    images: list[Path]
    labels: list[Path]


def load_masks(
    root: Path,
    *,
    image_size: int | None,
    crop_size: int | None,
    mean_std: tuple[Triple, Triple] | None,
    workers: int,
) -> Dataset:
    """The data set of a folder with images and label images.

    Args:
        image_size: side of the square that test images are cut to; None takes the images' own if
            they are alike and square, else 256.
        crop_size: side of the random squares to train on; None takes image_size.
        mean_std: None takes the training images', of at most 200.

    Raises:
        ConfigError: a crop larger than the image.
        DataError: a file is missing, cannot be read, or is no label image; it is named.
    """
    train, test = _pairs(root)
    with quiet_decoding():
        sizes, values = _looked_at([*train.images, *test.images], [*train.labels, *test.labels])
        mean, std = mean_std or _statistics(train.images)
    alike = len(sizes) == 1 and len(set(next(iter(sizes)))) == 1
    side = image_size or (next(iter(sizes))[0] if alike else _DEFAULT_SIZE)
    crop = crop_size or side
    if crop > side:
        raise ConfigError(
            f"--crop-size {crop} is larger than the images, {side} pixels; give at most that"
        )
    binary = values <= {0, 255}
    count = len(values) if binary else _classes_of(values - {IGNORED}, root)
    if count < 2:
        raise DataError(
            f"the labels in {root} know one class only; segmentation needs at least two"
        )

    def split(pairs: Pairs) -> StreamedSplit:
        return StreamedSplit(
            partial(MaskFiles, pairs, side, crop, binary),
            image_size=side, mean=mean, std=std, workers=workers,
        )  # fmt: skip

    return Dataset(
        name=root.name,
        classes=["background", "foreground"] if binary else [str(i) for i in range(count)],
        image_size=side,
        resize_side=side,
        mean=mean,
        std=std,
        train=split(train),
        test=split(test),
        task=Segmentation.name,
    )


def _classes_of(indices: set[int], root: Path) -> int:
    """How many classes there are, by the indices that were seen.

    Raises:
        DataError: they have such gaps that they are no indices.
    """
    count = max(indices) + 1
    if count > _MOST_CLASSES_A_VALUE * len(indices):
        seen = ", ".join(map(str, sorted(indices)[:5]))
        raise DataError(
            f"the labels in {root} have {len(indices)} values up to {count - 1} ({seen}, ...); "
            "number the classes 0, 1, 2, ..., or mark two classes by 0 and 255"
        )
    return count


class MaskFiles(SeededFiles):
    """Image files with their label files."""

    def __init__(
        self, pairs: Pairs, image_size: int, crop_size: int, binary: bool, seed: int | None
    ) -> None:
        super().__init__(len(pairs.images), seed)
        self._pairs = pairs
        self._binary = binary
        self._view = _whole(image_size) if seed is None else _random_crop(image_size, crop_size)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """See `SeededFiles.read`."""
        labels = read_labels(self._pairs.labels[index])
        return read_rgb(self._pairs.images[index]), labels > 0 if self._binary else labels

    def view(self, held: tuple[Image.Image, np.ndarray]) -> Sample:
        """See `SeededFiles.view`: image and labels go through the same transform."""
        labels = torch.from_numpy(held[1].astype(np.int64))
        image, mask = self._view(vf.pil_to_tensor(held[0]), tv_tensors.Mask(labels))
        return torch.as_tensor(image), mask.as_subclass(Tensor).contiguous()


def read_labels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The class indices (h, w) of a label image; of a palette its indices.

    Raises:
        DataError: it cannot be read, or has more than one channel; it is named.
    """
    try:
        with Image.open(path) as image:
            lossy = image.format in ("JPEG", "MPO")
            ImageOps.exif_transpose(image, in_place=True)
            found = np.asarray(image.convert("L") if image.mode == "1" else image)
    except Exception as error:  # decoders raise nearly every type there is on damaged files
        raise unreadable(f"label image {path}", error) from error
    if lossy:
        raise DataError(f"label image {path} is a JPEG, which invents values; save it as PNG")
    if found.ndim == 3 and (found == found[..., :1]).all():
        found = found[..., 0]  # grey that was saved as RGB
    whole = found.dtype.kind in "ui" and found.min(initial=0) >= 0 and found.max(initial=0) <= 255
    if found.ndim != 2 or not whole:
        raise DataError(
            f"label image {path} is {found.shape} {found.dtype}; it must have one channel of "
            "class indices up to 254"
        )
    return found.astype(np.uint8)


def _orientation(path: Path) -> int:
    """How a file says that it is turned; 1 is upright."""
    with Image.open(path) as image:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))


class _AlignedLabels(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Labels are resized as their image is: of each pixel the class that most of it comes from.

    torchvision takes one of the pixels for them, which shifts them by up to half a pixel, and which
    breaks thin lines.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        size = params["size"] if params else self.size
        labels = inpt.as_subclass(Tensor)
        classes = labels.unique()
        shares = vf.resize((labels == classes.view(-1, 1, 1)).float(), size, antialias=True)
        return tv_tensors.wrap(classes[shares.argmax(0)], like=inpt)


class _Resize(_AlignedLabels, v2.Resize):  # type: ignore[misc]  # torchvision has no types
    """To one size."""


class _RandomResize(_AlignedLabels, v2.RandomResize):  # type: ignore[misc]  # torchvision has no types
    """To a size that is drawn."""


def _whole(size: int) -> v2.Compose:
    """The shorter side to `size`, the middle of it."""
    return v2.Compose([_Resize(size, antialias=True), v2.CenterCrop(size)])


def _random_crop(size: int, crop: int) -> v2.Compose:
    """A square of `crop` from the image at about the size that it is tested at, or mirrored."""
    fill = {torch.Tensor: 0, tv_tensors.Mask: IGNORED}
    return v2.Compose([
        _RandomResize(max(1, int(size * _SCALES[0])), int(size * _SCALES[1]) + 1, antialias=True),
        v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
        v2.RandomHorizontalFlip(),
    ])  # fmt: skip


def _pairs(root: Path) -> tuple[Pairs, Pairs]:
    """The training pairs and the test pairs of a folder."""
    if (root / "train").is_dir():
        return _listed(root / "train"), _listed(held_out_folder(root))
    pairs = _listed(root)
    last = slice(_TEST_EVERY - 1, None, _TEST_EVERY)
    test = Pairs(pairs.images[last], pairs.labels[last])
    if not test.images:
        raise DataError(
            f"data folder {root} has {len(pairs.images)} images; give {_TEST_EVERY} or more, as "
            f"every {_TEST_EVERY}th is held out, or train/ and test/"
        )
    left = [i for i in range(len(pairs.images)) if i % _TEST_EVERY != _TEST_EVERY - 1]
    return Pairs([pairs.images[i] for i in left], [pairs.labels[i] for i in left]), test


def _listed(folder: Path) -> Pairs:
    """Every image of a folder with the label image of its name."""
    found: dict[str, dict[str, Path]] = {}
    for kind in ("image", "label"):
        if not (folder / kind).is_dir():
            raise DataError(
                f"data folder {folder} has no folder {kind}/; segmentation needs {PAIRS}"
            )
        found[kind] = {}
        for path in sorted((folder / kind).iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                other = found[kind].setdefault(path.stem, path)
                if other != path:
                    raise DataError(f"{other} and {path.name} have one name; remove one of them")
    for here, there in (("image", "label"), ("label", "image")):
        alone = sorted(found[here].keys() - found[there].keys())
        if alone:
            more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise DataError(
                f"{found[here][alone[0]]}{more} has no {there} of its name in {folder}; "
                "add it, or remove this one"
            )
    names = sorted(found["image"])
    if not names:
        raise DataError(f"{folder / 'image'} has no images")
    return Pairs([found["image"][n] for n in names], [found["label"][n] for n in names])


def _looked_at(images: list[Path], labels: list[Path]) -> tuple[set[tuple[int, int]], set[int]]:
    """The sizes of all images, and the values of all labels.

    Every file is read once before training: how many classes there are can be had no other way.
    """

    def look(pair: tuple[Path, Path]) -> tuple[tuple[int, int], set[int]]:
        found, size = read_labels(pair[1]), read_rgb(pair[0]).size
        if _orientation(pair[0]) != _orientation(pair[1]):
            raise DataError(
                f"{pair[0]} is stored turned by its EXIF tag and {pair[1].name} is not in the same "
                "way; save both upright"
            )
        if found.shape != size[::-1]:
            raise DataError(
                f"{pair[0]} is {size[0]} x {size[1]} pixels, its label image "
                f"{found.shape[1]} x {found.shape[0]}; they must be alike"
            )
        return size, set(np.unique(found).tolist())

    sizes: set[tuple[int, int]] = set()
    values: set[int] = set()
    for size, own in in_threads(look, list(zip(images, labels, strict=True))):
        sizes.add(size)
        values |= own
    return sizes, values


def _statistics(paths: list[Path]) -> tuple[Triple, Triple]:
    """Mean and deviation of the channels over some images."""
    chosen = [paths[place] for place in spread_indices(len(paths), _LOOKED_AT)]
    return statistics_of_chunks(
        torch.from_numpy(np.array(read_rgb(path))).unsqueeze(0) for path in chosen
    )
