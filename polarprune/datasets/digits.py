"""scikit-learn's 1,797 handwritten digits, embedded: real images that need no download.

8x8 pixels of 0..16 (Alpaydin and Kaynak 1998, UCI, CC BY 4.0) are enlarged four times by bilinear
interpolation to 32x32, grey in RGB, so that the CIFAR networks take them as they are. The file and
its stratified split (1,437 for training, 360 for testing) are written by benchmarks/make_digits.py.
"""

from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from polarprune.datasets.memory import in_memory
from polarprune.datasets.splits import Dataset, Triple

_SIDE = 32
_GREY_LEVELS = 16
# Half a pixel of the original scan.
_MAX_SHIFT = 2


def load_digits(*, image_size: int | None, mean_std: tuple[Triple, Triple] | None) -> Dataset:
    """The digits; a mirrored digit is another sign, so that none is ever flipped."""
    with (files("polarprune.datasets") / "digits.npz").open("rb") as file:
        arrays = dict(np.load(file, allow_pickle=False))
    splits = (
        (_enlarged(arrays[f"{name}_images"]), torch.from_numpy(arrays[f"{name}_labels"]).long())
        for name in ("train", "test")
    )
    return in_memory(
        "digits", [str(digit) for digit in range(10)], *splits, image_size=image_size,
        mean_std=mean_std, flip=False, max_shift=_MAX_SHIFT,
    )  # fmt: skip


def _enlarged(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> UInt8[Tensor, "n s s 3"]:
    """8x8 of 0..16 to 32x32 of 0..255.

    Exactness: bitwise on every machine; all weights are multiples of 1/64 and sums stay far below
    2^24, so that float32 rounds nothing before the one rounding to integers.
    """
    grey: Float[Tensor, "n 1 8 8"] = torch.from_numpy(images).unsqueeze(1).float()
    large = F.interpolate(grey, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
    levels = (large * 255 / _GREY_LEVELS).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
