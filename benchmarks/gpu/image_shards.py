"""CIFAR-10 as WebP mosaics, unpacked into the class-folder tree that training reads.

A mosaic holds 10,000 images of 32 x 32 as 100 x 100 tiles in row order; <split>-labels.npy has the
class of each tile, that of train-K.webp from 10,000 K on. Of the training mosaics those count that
are there: all of them may be too large to be sent along.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from polarprune.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE, COLUMNS = 32, 100


def is_shards(folder: Path) -> bool:
    """Whether there are mosaics in it."""
    return (folder / "test.webp").is_file()


def tree_of(folder: Path) -> tuple[Path, dict[str, int]]:
    """The unpacked tree of a folder of mosaics, and the images of each split.

    It always lies at one place, and is made once there: a run that goes on must find its images
    under the path that it began with.

    Raises:
        DataError: as `unpack`.
    """
    tree = Path(tempfile.gettempdir()) / "polarprune-gpu-data" / folder.resolve().name
    whole = tree.with_suffix(".counts.json")
    if not whole.exists():
        shutil.rmtree(tree, ignore_errors=True)
        counts = unpack(folder, tree)
        whole.write_text(json.dumps(counts))
    found: dict[str, int] = json.loads(whole.read_text())
    return tree, found


def unpack(folder: Path, out: Path) -> dict[str, int]:
    """Write train/<class>/*.png and test/<class>/*.png.

    Returns:
        Images of each split.

    Raises:
        DataError: there is no training mosaic, or labels and mosaics do not fit.
    """
    shards = sorted(folder.glob("train-?.webp"))
    if not shards:
        raise DataError(f"{folder} has test.webp, but no train-0.webp; give a folder with both")
    counts = {"train": 0, "test": 0}
    for file in (*shards, folder / "test.webp"):
        split, _, number = file.stem.partition("-")
        images = _tiles(file)
        labels = np.load(folder / f"{split}-labels.npy")
        start = int(number or 0) * len(images)
        labels = labels[start : start + len(images)]
        if len(labels) != len(images):
            raise DataError(f"{file} has {len(images)} images, but {len(labels)} labels")
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            into = out / split / CLASSES[label]
            into.mkdir(parents=True, exist_ok=True)
            name = f"{start + place:05d}.png"
            Image.fromarray(image).save(into / name, compress_level=1)
        counts[split] += len(images)
    return counts


def _tiles(path: Path) -> Any:
    """(n, 32, 32, 3) uint8."""
    mosaic = np.asarray(Image.open(path).convert("RGB"))
    height, width, _ = mosaic.shape
    if width != SIDE * COLUMNS or height % SIDE:
        raise DataError(f"{path} is {width} x {height} pixels; a mosaic has {SIDE * COLUMNS} x n")
    grid = mosaic.reshape(height // SIDE, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, SIDE, SIDE, 3)
