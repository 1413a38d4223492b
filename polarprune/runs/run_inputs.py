"""What a run trains on, and whether its network takes it."""

from typing import Any

import torch
from torch import Tensor, nn

from polarprune.datasets import Dataset, load_dataset
from polarprune.datasets.memory import MemorySplit
from polarprune.errors import ConfigError, first_line
from polarprune.graph.comparing import in_mode
from polarprune.networks import input_size, weights_normalisation
from polarprune.runs.train_config import TrainConfig
from polarprune.tasks import Segmentation, Task
from polarprune.tasks.protocol import scores_of


def load_data(config: TrainConfig, device: torch.device) -> Dataset:
    """The data set of a run; what is in memory lies on the device.

    Raises:
        DataError, ConfigError: as load_dataset.
    """
    mean_std = None if config.weights is None else weights_normalisation(config.weights)
    size = config.image_size
    if size is None and config.task != Segmentation.name:  # whose networks take what there is
        size = input_size(config.model)[1]
    data = load_dataset(
        config.data, image_size=size, mean_std=mean_std, workers=config.workers, task=config.task,
        crop_size=config.crop_size,
    )  # fmt: skip
    for split in (data.train, data.test):
        if isinstance(split, MemorySplit):
            split.to(device)
    return data


def count_outputs(config: TrainConfig, data: Dataset) -> tuple[int, str]:
    """How many classes the network is to know, and what is to be said about it, if anything.

    Raises:
        ConfigError: fewer than there are in the data.
    """
    there, count = len(data.classes), config.num_classes or len(data.classes)
    if count < there:
        raise ConfigError(
            f"--num-classes is {count}, but {config.data} has {there} classes; give at least that, "
            "or leave it out"
        )
    idle = "1 output has" if count - there == 1 else f"{count - there} outputs have"
    return count, f"{idle} no class in {config.data}" if count > there else ""


def outputs_of(net: nn.Module, example: Tensor, option: str) -> Any:
    """What a network gives for an example, whose size an option decides.

    Raises:
        ConfigError: it cannot take it.
    """
    try:
        return net(example)
    except Exception as error:  # the user's network, or a size that it cannot take
        height, width = example.shape[2:]
        raise ConfigError(
            f"the model cannot take images of {height} x {width} pixels: {first_line(error)}; "
            f"try another {option}"
        ) from error


def check_outputs(
    net: nn.Module, task: Task, classes: int, crop_size: int | None, example: Tensor
) -> None:
    """Refuse a network that does not take the images, or says nothing about the classes.

    Args:
        crop_size: side of the squares that it trains on, where it is not that of the images.
        example: two images.

    Raises:
        ConfigError: what it gives, and what is wanted.
    """
    whole = example.shape[-1]
    for side, option in {crop_size or whole: "--crop-size", whole: "--image-size"}.items():
        images = example.new_zeros(*example.shape[:2], side, side)
        with torch.no_grad(), in_mode(net, training=False):
            task.check(outputs_of(net, images, option), classes, tuple(images.shape))


def check_classes(net: nn.Module, name: str, classes: int | None, shape: tuple[int, ...]) -> None:
    """Refuse a class count that a factory without the argument `num_classes` did not heed.

    Args:
        name: of the network, for the error.
        classes: None was not given.
        shape: (c, h, w) of one image.

    Raises:
        ConfigError: what the network has.
    """
    if classes is None:
        return
    with torch.no_grad(), in_mode(net, training=False):
        scores = scores_of(outputs_of(net, torch.zeros(1, *shape), "--image-size"))
    if isinstance(scores, Tensor) and scores.dim() > 1 and scores.shape[1] != classes:
        raise ConfigError(
            f"--num-classes is {classes}, but {name} has {scores.shape[1]} whatever is asked for; "
            "leave it out, or let the factory take num_classes"
        )


def example_of(data: Dataset, device: torch.device) -> Tensor:
    """Two images of the size that the network is fed."""
    return torch.zeros(2, data.channels, data.image_size, data.image_size, device=device)
