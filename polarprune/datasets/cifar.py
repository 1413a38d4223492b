"""CIFAR-10 and CIFAR-100 through torchvision, downloaded once into a cache folder."""

import os
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from polarprune.datasets.memory import in_memory
from polarprune.datasets.splits import Dataset, Triple
from polarprune.errors import DataError, first_line

_CACHE_VARIABLE = "POLARPRUNE_DATA"
_SETS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
CIFAR_NAMES = tuple(_SETS)


def load_cifar(
    name: str, *, image_size: int | None, mean_std: tuple[Triple, Triple] | None
) -> Dataset:
    """`cifar10` or `cifar100`, from the cache folder or the network.

    Raises:
        DataError: the set is not in the cache and cannot be downloaded.
    """
    cache = Path(os.environ.get(_CACHE_VARIABLE) or Path.home() / ".cache" / "polarprune")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        train, test = (_SETS[name](cache, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError, EOFError) as error:
        archive = _SETS[name].filename
        raise DataError(
            f"{name} is not in {cache} and could not be downloaded ({first_line(error)}); "
            f"put {archive} there, or set {_CACHE_VARIABLE} to a folder that has it, or give a "
            "class-folder tree"
        ) from error
    splits = ((torch.from_numpy(s.data), torch.tensor(s.targets)) for s in (train, test))
    return in_memory(name, list(train.classes), *splits, image_size=image_size, mean_std=mean_std)
