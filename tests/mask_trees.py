"""Small image and label folders: bright discs on dark noise, which a few steps can learn."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pairs(
    folder: Path,
    count: int = 10,
    side: int = 32,
    *,
    values: tuple[int, ...] = (0, 255),
    seed: int = 0,
) -> Path:
    """`count` pairs; the label is values[0] outside of a disc and one of the others inside."""
    rng = np.random.default_rng(seed)
    for kind in ("image", "label"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        y, x = np.mgrid[:side, :side]
        centre, radius = (
            rng.integers(side // 4, 3 * side // 4, 2),
            rng.integers(side // 6, side // 3),
        )
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        kind = number % (len(values) - 1)
        pixels = rng.integers(0, 60, (side, side, 3))
        pixels[inside, kind % 3] += 150
        label = np.where(inside, values[1 + kind], values[0]).astype(np.uint8)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "image" / f"{number:02}.png")
        Image.fromarray(label).save(folder / "label" / f"{number:02}.png")
    return folder
