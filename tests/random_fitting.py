"""Layers that make a tensor fit what comes next: its width, its image size, the bounds for both."""

import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_WIDTH, LARGEST_IMAGE, SMALLEST_IMAGE = 24, 20, 3


def back_in_bounds(x: Tensor) -> nn.Module | None:
    """A layer for what became too wide, too large or too small, one complaint at a time."""
    if x.shape[1] > LARGEST_WIDTH:
        return nn.Conv2d(x.shape[1], 8, 1)
    if max(x.shape[2:]) > LARGEST_IMAGE:
        return nn.AvgPool2d(tuple(2 if size > LARGEST_IMAGE else 1 for size in x.shape[2:]))
    if min(x.shape[2:]) < SMALLEST_IMAGE:
        return nn.Upsample(
            scale_factor=tuple(2.0 if size < SMALLEST_IMAGE else 1.0 for size in x.shape[2:])
        )
    return None if x.is_contiguous() else _Contiguous()


class _Contiguous(nn.Module):
    """What people add when a later view() complains."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


def to_multiple(x: Tensor, of: int) -> tuple[nn.Module, int]:
    """A layer that makes the width a multiple, and that width."""
    width = x.shape[1]
    wanted = max(1, round(width / of)) * of
    return (nn.Identity() if wanted == width else nn.Conv2d(width, wanted, 1)), wanted


def largest_divisor(width: int, *candidates: int) -> int:
    return next((c for c in candidates if width % c == 0), 1)


def like(y: Tensor, x: Tensor) -> Tensor:
    """As decoders write it; traced only where build time showed that sizes differ."""
    return F.interpolate(y, size=x.shape[-2:])


class Like(nn.Module):
    """Back to the image size that the block was built for, where that was lost."""

    def __init__(self, y: Tensor, x: Tensor) -> None:
        super().__init__()
        self.size = None if y.shape[2:] == x.shape[2:] else tuple(x.shape[2:])

    def forward(self, y: Tensor) -> Tensor:
        return y if self.size is None else F.interpolate(y, size=self.size)
