"""From a `--data` value to a data set."""

from pathlib import Path

from polarprune.datasets.cifar import CIFAR_NAMES, load_cifar
from polarprune.datasets.digits import load_digits
from polarprune.datasets.folder import load_folder
from polarprune.datasets.splits import Dataset, Triple
from polarprune.errors import ConfigError, DataError


def load_dataset(
    spec: str | Path,
    *,
    image_size: int | None = None,
    mean_std: tuple[Triple, Triple] | None = None,
    workers: int = 2,
) -> Dataset:
    """The data set of a name (`digits`, `cifar10`, `cifar100`) or of a class-folder tree.

    Args:
        image_size: side of the square that the network is fed; None is the data set's own.
        mean_std: normalisation on the 0..1 scale, for weights that were trained with it; None
            takes the training images' own (ImageNet's for a set that is streamed).
        workers: reading processes for a set that is streamed.

    Raises:
        ConfigError: a size, a standard deviation or a number of workers out of range.
        DataError: the data are missing, incomplete or broken.
    """
    if image_size is not None and image_size < 1:
        raise ConfigError(f"the image size is {image_size}; it must be at least 1")
    if workers < 0:
        raise ConfigError(f"the number of workers is {workers}; it must be 0 or more")
    if mean_std is not None and min(mean_std[1]) <= 0:
        raise ConfigError(f"the standard deviation is {mean_std[1]}; it must be above 0")
    if spec == "digits":
        return load_digits(image_size=image_size, mean_std=mean_std)
    if isinstance(spec, str) and spec in CIFAR_NAMES:
        return load_cifar(spec, image_size=image_size, mean_std=mean_std)
    root = Path(spec)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"data folder {root} {what}; give digits, {', '.join(CIFAR_NAMES)} "
            "or a folder with train/<class>/* and test/<class>/*"
        )
    return load_folder(root, image_size=image_size, mean_std=mean_std, workers=workers)
