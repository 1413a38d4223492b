"""A split whose images are read as they are needed, by DataLoader workers.

For images that are large or of mixed sizes. Each image has a random generator of its own, seeded by
the epoch's seed and the image's number, so that the batches do not depend on the number of workers.
"""

import os
import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from polarprune.datasets.splits import Batch, Triple, spread_indices
from polarprune.errors import DataError
from polarprune.image_decoding import quiet_decoding, read_rgb

# The usual evaluation on ImageNet: the shorter side to 256, the middle 224 of it.
_RESIZE_RATIO = 256 / 224
# Krizhevsky et al. 2012 and every recipe since then draw crops of 8 to 100 % of the area, for
# 90 epochs of a million images; a quarter at least suits the shorter runs here (ours).
_SMALLEST_CROP = 0.25


def processor_count() -> int:
    """How many processors this process may use, as far as the system tells."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What a function makes of each item; after an error it is not asked about the others."""
    pool = ThreadPoolExecutor(processor_count())
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)


def resize_side(image_size: int) -> int:
    """What the shorter side becomes before the centre is cropped."""
    return round(image_size * _RESIZE_RATIO)


def _training_transform(image_size: int) -> v2.Compose:
    crop = v2.RandomResizedCrop(image_size, scale=(_SMALLEST_CROP, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])


def _evaluation_transform(image_size: int) -> v2.Compose:
    resize = v2.Resize(resize_side(image_size), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(image_size), v2.PILToTensor()])


@dataclass(frozen=True)
class _BrokenImage:
    """What a worker sends in place of an exception, which would arrive as a traceback's text."""

    message: str


Sample = tuple[Tensor, Tensor]  # uint8 pixels (3, h, w); a class, or one a pixel


class SeededFiles(TorchDataset[Sample | _BrokenImage], ABC):
    """Files that are read as they are needed; `seed` None means the evaluation view of each."""

    def __init__(self, count: int, seed: int | None) -> None:
        self._count = count
        self._seed = seed

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def read(self, index: int) -> Any:
        """What a file holds, before any transform.

        Raises:
            DataError: it cannot be read; it is named.
        """

    @abstractmethod
    def view(self, held: Any) -> Sample:
        """A sample of what a file holds; for training a random one."""

    def __getitem__(self, index: int) -> Sample | _BrokenImage:
        try:
            with quiet_decoding():
                held = self.read(index)
        except DataError as error:
            return _BrokenImage(str(error))
        if self._seed is None:
            return self.view(held)
        # v2 transforms draw from the global generator; its state is put back, since without
        # workers this is the training process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed * len(self) + index)
            return self.view(held)


class ImageFiles(SeededFiles):
    """Image files with a class each."""

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], image_size: int, seed: int | None
    ) -> None:
        super().__init__(len(paths), seed)
        self._paths = paths
        self._labels = labels
        evaluate = seed is None
        self._transform = (
            _evaluation_transform(image_size) if evaluate else _training_transform(image_size)
        )

    def read(self, index: int) -> tuple[Image.Image, int]:
        """See `SeededFiles.read`."""
        return read_rgb(self._paths[index]), self._labels[index]

    def view(self, held: tuple[Image.Image, int]) -> Sample:
        """See `SeededFiles.view`."""
        return self._transform(held[0]), torch.tensor(held[1])


def _collate(samples: list[Sample | _BrokenImage]) -> tuple[Tensor, Tensor] | _BrokenImage:
    """Stack as uint8, a quarter of what float32 would cost to send to the parent process."""
    whole: list[Sample] = []
    for sample in samples:
        if isinstance(sample, _BrokenImage):
            return sample
        whole.append(sample)
    images, labels = zip(*whole, strict=True)
    return torch.stack(images), torch.stack(labels)


def _end_on_sigterm(_worker: int) -> None:
    """Let SIGTERM end a worker as if it were done.

    `timeout` and SLURM send it to the whole group, and of a worker that a signal ended torch prints
    a traceback beside what the program itself says. One that ends alone the DataLoader still misses
    within seconds.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


class StreamedSplit:
    """Files that give squares of `image_size`.

    Args:
        files: makes the files' samples for a seed, or for None their evaluation view.
        workers: reading processes; 0 reads in this one.
    """

    def __init__(
        self,
        files: Callable[[int | None], SeededFiles],
        *,
        image_size: int,
        mean: Triple,
        std: Triple,
        workers: int,
    ) -> None:
        self.image_size = image_size
        self._files = files
        self._scale = 1 / (255 * torch.tensor(std, dtype=torch.float32)).view(3, 1, 1)
        self._offset = -(torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)
        # More than the processors there are slows down, and torch warns.
        self._workers = min(workers, processor_count())

    def __len__(self) -> int:
        """The number of images."""
        return len(self._files(None))

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
        files = self._files((shuffle_seed or 0) if augment else None)
        order = torch.arange(len(self))
        if shuffle_seed is not None:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(shuffle_seed))
        whole = [b for b in torch.split(order, batch_size) if len(b) == batch_size or not drop_last]
        loader = DataLoader(
            files,
            batch_sampler=[chosen[part[0] :: part[1]].tolist() for chosen in whole[first:]],
            generator=torch.Generator().manual_seed(shuffle_seed or 0),
            num_workers=self._workers,
            collate_fn=_collate,
            worker_init_fn=_end_on_sigterm,
        )
        with warnings.catch_warnings():
            # Python 3.12 and 3.13 warn of every fork in a process with threads, as torch's are.
            warnings.filterwarnings("ignore", ".*use of fork.*", DeprecationWarning)
            batches = iter(loader)
        try:
            for batch in batches:
                if isinstance(batch, _BrokenImage):
                    raise DataError(batch.message)
                images, labels = batch
                images = images.contiguous(memory_format=torch.channels_last)
                yield torch.addcmul(self._offset, images.float(), self._scale), labels
        finally:
            del batches  # kept by an error's traceback, it would wait 5 s for each worker's end

    def raw(self, count: int) -> tuple[UInt8[Tensor, "n h w 3"], Int64[Tensor, "n ..."]]:
        """See `Split.raw`."""
        files = self._files(None)
        chosen = _collate([files[index] for index in spread_indices(len(files), count)])
        if isinstance(chosen, _BrokenImage):
            raise DataError(chosen.message)
        images, labels = chosen
        return images.permute(0, 2, 3, 1).contiguous(), labels
