"""A split that is one uint8 tensor; crops and flips are one gather for a whole batch.

One thread delivers some 40,000 augmented CIFAR images a second (benchmarks/loading_speed.py),
which is several times what a small network trains on, so that no worker process is needed.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from polarprune.datasets.splits import Batch, Dataset, Triple, spread_indices

# A crop moves by up to an eighth of the side: the usual 4 pixels of 32 (He et al. 2015).
_CROP_FRACTION = 1 / 8


class MemorySplit:
    """Square uint8 images of one size, with their classes.

    Args:
        image_size: the side to resize each batch to; the images' own costs nothing.
        flip: whether a mirrored image is of the same class.
        max_shift: furthest random shift in pixels; None is an eighth of the side. What a shift
            uncovers is filled with the image's own reflection.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n s s 3"],
        labels: Int64[Tensor, "n"],
        *,
        mean: Triple,
        std: Triple,
        image_size: int | None = None,
        flip: bool = True,
        max_shift: int | None = None,
    ) -> None:
        self._images = images.contiguous()
        self._labels = labels
        # (x / 255 - mean) / std = x * scale + offset
        self._scale = 1 / (255 * torch.tensor(std, dtype=torch.float32))
        self._offset = -torch.tensor(mean) / torch.tensor(std)
        self._side = images.shape[1]
        self.image_size = self._side if image_size is None else image_size
        self._flip = flip
        self._max_shift = round(self._side * _CROP_FRACTION) if max_shift is None else max_shift

    def __len__(self) -> int:
        """The number of images."""
        return len(self._images)

    def to(self, device: torch.device) -> None:
        """Keep the images on this device, where batches are made from now on.

        Order, crops and flips are still drawn on the CPU: the batches are the same.
        """
        for name in ("_images", "_labels", "_scale", "_offset"):
            setattr(self, name, getattr(self, name).to(device))

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
        """See `Split.batches`."""
        generator = torch.Generator().manual_seed(shuffle_seed or 0)
        order = torch.arange(len(self))
        if shuffle_seed is not None:
            order = torch.randperm(len(self), generator=generator)
        for number, chosen in enumerate(torch.split(order, batch_size)):
            if drop_last and len(chosen) < batch_size:
                return
            moves = self._drawn(len(chosen), generator) if augment else None
            if number < first:
                continue
            mine = slice(part[0], None, part[1])
            chosen = chosen[mine].to(self._images.device, non_blocking=True)
            images = self._images[chosen]
            if moves is not None:
                shifts, mirrored = moves
                own_mirrored = None if mirrored is None else mirrored[mine].to(images.device)
                images = self._shifted(images, shifts[:, mine].to(images.device), own_mirrored)
            yield self._normalised(images), self._labels[chosen]

    def raw(self, count: int) -> tuple[UInt8[Tensor, "n h w 3"], Int64[Tensor, "n"]]:
        """See `Split.raw`."""
        chosen = spread_indices(len(self), count)
        images, labels = self._images[chosen].cpu(), self._labels[chosen].cpu()
        if self.image_size == self._side:
            return images, labels
        resized = self._resized(images.permute(0, 3, 1, 2).float())
        return resized.round_().clamp_(0, 255).to(torch.uint8).permute(
            0, 2, 3, 1
        ).contiguous(), labels

    def _drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """(2, n, 1) shifts in pixels, and which images (n, 1) are mirrored."""
        shift = self._max_shift
        moves = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator)
        return moves, torch.rand(count, 1, generator=generator) < 0.5 if self._flip else None

    def _shifted(
        self, images: UInt8[Tensor, "n s s 3"], moves: Tensor, mirrored: Tensor | None
    ) -> UInt8[Tensor, "n s s 3"]:
        """Shift each image by an amount of its own, and mirror some."""
        count, side = len(images), self._side
        along = torch.arange(side, device=images.device)
        rows = _reflected(along + moves[0], side)  # (n, s)
        columns = _reflected(along + moves[1], side)
        if mirrored is not None:
            columns = torch.where(mirrored, columns.flip(1), columns)
        first = torch.arange(count, device=images.device).view(count, 1, 1) * (side * side)
        pixels = first + (rows * side).unsqueeze(2) + columns.unsqueeze(1)  # (n, s, s)
        return images.view(-1, 3).index_select(0, pixels.view(-1)).view(images.shape)

    def _normalised(self, images: UInt8[Tensor, "n s s 3"]) -> Tensor:
        # float32 (n, s, s, 3) seen as (n, 3, s, s): channels last without a copy.
        batch = torch.addcmul(self._offset, images.float(), self._scale).permute(0, 3, 1, 2)
        return batch if self.image_size == self._side else self._resized(batch)

    def _resized(self, batch: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        resized = F.interpolate(batch, size, mode="bilinear", antialias=True)
        return resized.contiguous(memory_format=torch.channels_last)


Images = tuple[UInt8[Tensor, "n s s 3"], Int64[Tensor, "n"]]
"""With their classes."""


def in_memory(
    name: str,
    classes: list[str],
    train: Images,
    test: Images,
    *,
    image_size: int | None,
    mean_std: tuple[Triple, Triple] | None,
    flip: bool = True,
    max_shift: int | None = None,
) -> Dataset:
    """A data set of two tensors; what is None is that of the training images."""
    mean, std = mean_std or channel_statistics(train[0])
    side = image_size or train[0].shape[1]

    def split(images: Images) -> MemorySplit:
        return MemorySplit(
            *images, mean=mean, std=std, image_size=side, flip=flip, max_shift=max_shift
        )

    return Dataset(
        name=name,
        classes=classes,
        image_size=side,
        resize_side=side,
        mean=mean,
        std=std,
        train=split(train),
        test=split(test),
    )


def _reflected(index: Tensor, side: int) -> Tensor:
    """Positions outside 0..side-1 mirrored at the edge pixel, which is not repeated."""
    return (side - 1 - (side - 1 - index.abs()).abs()).clamp_(0)


def channel_statistics(images: UInt8[Tensor, "n h w 3"]) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel over all pixels, on the 0..1 scale."""
    return statistics_of_chunks(torch.split(images, 256))


def statistics_of_chunks(chunks: Iterable[UInt8[Tensor, "n h w 3"]]) -> tuple[Triple, Triple]:
    """The same of images that come a few at a time, of any sizes.

    Sums are of integers, so the result does not depend on the order of the images.
    """
    total = torch.zeros(3, dtype=torch.int64)
    total_of_squares = torch.zeros(3, dtype=torch.int64)
    pixels = 0
    for chunk in chunks:
        pixels += chunk.numel() // 3
        # Rows of an image at once: a sum along rows of three numbers is several times slower.
        rows = chunk.flatten(0, 1).flatten(1).to(torch.int32)  # (n h, w 3)
        total += rows.sum(0).view(-1, 3).sum(0)
        total_of_squares += (rows * rows).sum(0).view(-1, 3).sum(0)
    mean = total.double() / pixels
    variance = total_of_squares.double() / pixels - mean * mean
    # One grey level at least: a channel of one colour must not be divided by zero.
    std = variance.clamp(min=1.0).sqrt()
    return _triple(mean / 255), _triple(std / 255)


def _triple(values: Tensor) -> Triple:
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue
