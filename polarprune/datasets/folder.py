"""A tree of class folders: `train/<class>/*` and `test/<class>/*` (or `val/`).

Images of one square size that fit are decoded once into memory by a pool of threads; others are
streamed.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from polarprune.datasets.memory import in_memory
from polarprune.datasets.splits import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Dataset,
    Triple,
    held_out_folder,
)
from polarprune.datasets.streaming import (
    ImageFiles,
    StreamedSplit,
    in_threads,
    processor_count,
    resize_side,
)
from polarprune.errors import DataError
from polarprune.image_decoding import IMAGE_SUFFIXES, quiet_decoding, read_rgb

# As uint8, both splits together.
_MEMORY_LIMIT_BYTES = 1 << 30
# Sizes are looked at in so many files of a split before all of them are decoded.
_SAMPLE_FILES = 64
# Sets up to this many files are read once before training, so that a broken image shows at once;
# in a larger one it shows when its turn comes.
_CHECKED_FILES = 2_000
_CHUNK_FILES = 64
# At 32 pixels two threads need 1.2 to 1.5 times as long as one, from here on no longer (Pillow 13).
_THREADED_SIDE = 64
_DEFAULT_STREAM_SIZE = 224


@dataclass(frozen=True)
class FileList:
    """The image files of one split, with the class index of each, in the order of their names."""

    paths: list[Path]
    labels: list[int]


def load_folder(
    root: Path, *, image_size: int | None, mean_std: tuple[Triple, Triple] | None, workers: int
) -> Dataset:
    """The data set of a folder.

    Args:
        image_size: None takes the images' own if they are alike and square, else 224.
        mean_std: None takes the training images' if they are in memory, else ImageNet's.

    Raises:
        DataError: a split, a class or an image is missing, or an image cannot be read.
    """
    train_root = root / "train"
    if not train_root.is_dir():
        raise DataError(f"data folder {root} has no folder train/; expected train/<class>/*")
    test_root = held_out_folder(root)
    classes = _class_names(train_root, test_root)
    train, test = _list_files(train_root, classes), _list_files(test_root, classes)
    with quiet_decoding():
        decoded = _decode_all(train, test)
    if decoded is not None:
        labels = (torch.tensor(files.labels) for files in (train, test))
        return in_memory(
            root.name, classes, *zip(decoded, labels, strict=True),
            image_size=image_size, mean_std=mean_std,
        )  # fmt: skip
    if len(train.paths) + len(test.paths) <= _CHECKED_FILES:
        with quiet_decoding():
            in_threads(lambda path: read_rgb(path).size, train.paths + test.paths)
    mean, std = mean_std or (IMAGENET_MEAN, IMAGENET_STD)
    side = image_size or _DEFAULT_STREAM_SIZE

    def streamed(files: FileList) -> StreamedSplit:
        return StreamedSplit(
            partial(ImageFiles, files.paths, files.labels, side),
            image_size=side, mean=mean, std=std, workers=workers,
        )  # fmt: skip

    return Dataset(
        name=root.name,
        classes=classes,
        image_size=side,
        resize_side=resize_side(side),
        mean=mean,
        std=std,
        train=streamed(train),
        test=streamed(test),
    )


def _class_names(train_root: Path, test_root: Path) -> list[str]:
    names: dict[Path, set[str]] = {}
    for split in (train_root, test_root):
        folders = (entry for entry in os.scandir(split) if entry.is_dir())
        names[split] = {entry.name for entry in folders if not entry.name.startswith(".")}
        if not names[split]:
            raise DataError(f"{split} has no class folders; expected {split.name}/<class>/*")
    for here, there in ((train_root, test_root), (test_root, train_root)):
        missing = sorted(names[here] - names[there])
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(
                f"class {missing[0]!r}{more} is in {here} but not in {there}; "
                "both splits need the same class folders"
            )
    if len(names[train_root]) < 2:
        raise DataError(f"{train_root} has one class only; a classifier needs at least two")
    return sorted(names[train_root])


def _list_files(split: Path, classes: Sequence[str]) -> FileList:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [
            Path(folder, file)
            for folder, _, files in os.walk(split / name, followlinks=True)
            for file in files
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES
        ]
        if not found:
            raise DataError(f"class folder {split / name} has no images; add some, or remove it")
        paths += sorted(found)
        labels += [label] * len(found)
    return FileList(paths, labels)


def _decode_all(train: FileList, test: FileList) -> tuple[Tensor, Tensor] | None:
    """All images, or None where they are not of one square size or are too many."""
    side = _common_side(_spread(train.paths) + _spread(test.paths))
    count = len(train.paths) + len(test.paths)
    if side is None or count * side * side * 3 > _MEMORY_LIMIT_BYTES:
        return None
    train_images = _decode(train.paths, side)
    test_images = None if train_images is None else _decode(test.paths, side)
    return None if train_images is None or test_images is None else (train_images, test_images)


def _spread(paths: list[Path]) -> list[Path]:
    return paths[:: max(1, len(paths) // _SAMPLE_FILES)]


def _common_side(paths: list[Path]) -> int | None:
    width, height = read_rgb(paths[0]).size
    if width != height:
        return None
    return width if all(read_rgb(path).size == (width, height) for path in paths[1:]) else None


def _decode(paths: list[Path], side: int) -> UInt8[Tensor, "n s s 3"] | None:
    """All images in one tensor, or None at the first that is of another size."""
    pixels = np.empty((len(paths), side, side, 3), dtype=np.uint8)

    def decode_chunk(start: int) -> bool:
        for index in range(start, min(start + _CHUNK_FILES, len(paths))):
            image = read_rgb(paths[index])
            if image.size != (side, side):
                return False
            pixels[index] = np.asarray(image)
        return True

    # Reading a small image is nearly all Python, where a second thread only fights for the lock.
    threads = 1 if side < _THREADED_SIDE else processor_count()
    pool = ThreadPoolExecutor(threads)
    try:
        alike = all(pool.map(decode_chunk, range(0, len(paths), _CHUNK_FILES)))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or an odd size, read no further
    return torch.from_numpy(pixels) if alike else None
