"""What a data set is to the rest of the program."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from polarprune.errors import DataError

Triple = tuple[float, float, float]
# Labels are one class an image, or one a pixel (n, h, w).
Batch = tuple[Float[Tensor, "n 3 h w"], Int64[Tensor, "n ..."]]

# On the 0..1 scale, red, green, blue.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Split(Protocol):
    """The training or the test images of a data set."""

    @property
    def image_size(self) -> int:
        """Side of the squares that evaluation sees."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def batches(
        self,
        batch_size: int,
        *,
        shuffle_seed: int | None,
        augment: bool,
        drop_last: bool = False,
        first: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """One epoch of normalised float32 images, channels last in memory, with their classes.

        Args:
            shuffle_seed: seeds order and augmentation: the same seed gives the same batches, bit
                for bit. None keeps the order of the data set (and augments as seed 0 does).
            augment: random crops and flips; for training only.
            drop_last: leave a last batch out that is smaller than `batch_size`.
            first: the batch to begin with; those before it are not read, and change nothing in
                those after it.
            part: (k, n): of every batch the k-th image and every n-th after it, as they are in the
                whole batch; for one rank of n.

        Raises:
            DataError: an image cannot be read; the file is named.
        """
        ...

    def raw(self, count: int) -> tuple[UInt8[Tensor, "n h w 3"], Int64[Tensor, "n ..."]]:
        """`count` images as a server would see them: resized and cropped, not normalised.

        They are spread evenly over the split, which may be sorted by class.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    """Images of equal size, in RGB, with one class each, or one a pixel.

    `image_size` is the side of the square that the network is fed. `resize_side` is what the
    shorter side of an image is resized to before its centre is cropped to `image_size`.
    `mean` and `std` are on the 0..1 scale, red, green, blue. `task` is what the labels are for.
    """

    name: str
    classes: list[str]
    image_size: int
    resize_side: int
    mean: Triple
    std: Triple
    train: Split
    test: Split
    channels: int = 3
    task: str = "classification"


def held_out_folder(root: Path) -> Path:
    """What stands beside train/ in a data folder: test/, else val/.

    Raises:
        DataError: there is neither.
    """
    found = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if found is None:
        raise DataError(f"data folder {root} has no folder test/ or val/ beside train/; add one")
    return found


def spread_indices(length: int, count: int) -> list[int]:
    """`count` positions at equal distances in 0..length-1; all of them if there are no more.

    >>> spread_indices(10, 4)
    [0, 2, 5, 7]
    """
    count = min(count, length)
    return [index * length // count for index in range(count)]
