"""From a `--data` value to a data set."""

from pathlib import Path

from polarprune.datasets.cifar import CIFAR_NAMES, load_cifar
from polarprune.datasets.digits import load_digits
from polarprune.datasets.folder import load_folder
from polarprune.datasets.masks import PAIRS, load_masks
from polarprune.datasets.splits import Dataset, Triple
from polarprune.errors import ConfigError, DataError
from polarprune.option_values import check_range
from polarprune.tasks.classification import Classification
from polarprune.tasks.segmentation import Segmentation


def load_dataset(
    spec: str | Path,
    *,
    image_size: int | None = None,
    mean_std: tuple[Triple, Triple] | None = None,
    workers: int = 2,
    task: str = Classification.name,
    crop_size: int | None = None,
) -> Dataset:
    """The data set of a name (`digits`, `cifar10`, `cifar100`) or of a class-folder tree.

    Args:
        image_size: side of the square that the network is fed; None is the data set's own.
        mean_std: normalisation on the 0..1 scale, for weights that were trained with it; None
            takes the training images' own (ImageNet's for a set that is streamed).
        workers: reading processes for a set that is streamed.
        task: what the labels are for; for segmentation a folder of image/* and label/*.
        crop_size: side of the random squares that segmentation trains on; None is image_size.

    Raises:
        ConfigError: a size, a standard deviation or a number of workers out of range; a set without
            labels for the task.
        DataError: the data are missing, incomplete or broken.
    """
    check_range("--image-size", image_size, 1)
    check_range("--crop-size", crop_size, 1)
    check_range("--workers", workers, 0)
    if mean_std is not None and min(mean_std[1]) <= 0:
        raise ConfigError(f"the standard deviation is {mean_std[1]}; it must be above 0")
    if crop_size is not None and task != Segmentation.name:
        raise ConfigError(f"--crop-size belongs to --task {Segmentation.name}; leave it out")
    if task == Segmentation.name:
        if spec == "digits" or spec in CIFAR_NAMES:
            raise ConfigError(
                f"{spec} has one class an image, and --task segmentation needs one a pixel; give "
                f"a folder with {PAIRS}"
            )
        return load_masks(
            _folder(spec, PAIRS),
            image_size=image_size, crop_size=crop_size, mean_std=mean_std, workers=workers,
        )  # fmt: skip
    if spec == "digits":
        return load_digits(image_size=image_size, mean_std=mean_std)
    if isinstance(spec, str) and spec in CIFAR_NAMES:
        return load_cifar(spec, image_size=image_size, mean_std=mean_std)
    root = _folder(spec, "train/<class>/* and test/<class>/*")
    if task_of(root) == Segmentation.name:
        raise DataError(f"{root} has image/* and label/*; give --task segmentation with it")
    return load_folder(root, image_size=image_size, mean_std=mean_std, workers=workers)


def task_of(spec: str | Path) -> str:
    """What the labels of a data set are for, by its folders."""
    for root in (Path(spec), Path(spec) / "train"):
        if (root / "image").is_dir() and (root / "label").is_dir():
            return Segmentation.name
    return Classification.name


def _folder(spec: str | Path, wanted: str) -> Path:
    root = Path(spec)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"data folder {root} {what}; give digits, {', '.join(CIFAR_NAMES)} "
            f"or a folder with {wanted}"
        )
    return root
