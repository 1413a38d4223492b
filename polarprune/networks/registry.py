"""From a `--model` name to a network.

Names: `resnet20`, `unet`, ... (ours), `torchvision:NAME`, `timm:NAME`, `package.module:factory`.
Nothing is downloaded unless the weights are named `pretrained`.
"""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import nn

from polarprune.errors import ConfigError
from polarprune.networks.cifar_resnet import build_cifar_resnet
from polarprune.networks.cifar_vgg import CifarVgg
from polarprune.networks.unet import unet_of_name
from polarprune.networks.weights import PRETRAINED, load_weights
from polarprune.networks.zoos import FactoryZoo, TimmZoo, TorchvisionZoo, not_pretrained
from polarprune.option_values import check_range

_CIFAR_INPUT = (3, 32, 32)
_CIFAR_CLASSES = 10
_UNET_INPUT = (3, 256, 256)
_UNET_CLASSES = 2
_OURS: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{depth}": partial(build_cifar_resnet, depth) for depth in (20, 32, 44, 56, 110)},
    "vgg16_bn": CifarVgg,
}


class _Zoo(Protocol):
    """Where networks of one kind of name come from."""

    def build(self, num_classes: int | None, *, pretrained: bool) -> nn.Module: ...
    def input_size(self) -> tuple[int, int, int]: ...
    def default_classes(self) -> int: ...


class _OwnZoo:
    """The networks of this package."""

    def __init__(self, name: str) -> None:
        unet = unet_of_name(name)
        if unet is None and name not in _OURS:
            names = [*_OURS, "unet"]
            raise ConfigError(
                f"unknown model {name!r}; {_hint(name, names)} others are written "
                "torchvision:NAME, timm:NAME or package.module:factory"
            )
        self.name = name
        self._build = unet or _OURS[name]
        self._size, self._classes = (
            (_UNET_INPUT, _UNET_CLASSES) if unet else (_CIFAR_INPUT, _CIFAR_CLASSES)
        )

    def build(self, num_classes: int | None, *, pretrained: bool) -> nn.Module:
        if pretrained:
            raise not_pretrained(self.name)
        return self._build(self._classes if num_classes is None else num_classes)

    def input_size(self) -> tuple[int, int, int]:
        return self._size

    def default_classes(self) -> int:
        return self._classes


def build_network(
    name: str, num_classes: int | None = 10, weights: str | Path | None = None
) -> nn.Module:
    """A network by its `--model` name, in training mode, on the CPU, in float32.

    Args:
        num_classes: None takes the zoo's own (ours 10, ImageNet's 1000, a factory's default).
        weights: None for random ones, "pretrained" for the zoo's own (downloaded; the classifier
            stays random when its class count differs), else a .safetensors, .pt or .pth file.

    Raises:
        ConfigError: no such network, or a class count below 1.
        WeightsError: the weights do not fit; the parameter is named.
        BackendUnavailable: `timm:` without timm.
    """
    check_range("--num-classes", num_classes, 1)
    net = _zoo(name).build(num_classes, pretrained=weights == PRETRAINED)
    if weights is not None and weights != PRETRAINED:
        load_weights(net, weights)
    return net.train()


def input_size(name: str) -> tuple[int, int, int]:
    """C, H, W of the images that the network was made for.

    A factory may state its own as an attribute `input_size`; without one it is 3, 224, 224.
    """
    return _zoo(name).input_size()


def default_classes(name: str) -> int:
    """The class count of the network when none is asked for.

    Raises:
        ConfigError: a factory that does not say and ends in no linear layer.
    """
    return _zoo(name).default_classes()


def _hint(name: str, names: list[str]) -> str:
    if Path(f"{name}.py").is_file():
        return f"of {name}.py here write {name}:FACTORY;"
    close = difflib.get_close_matches(name, names, n=len(names))
    if not close:
        return f"ours are {', '.join(names)};"
    # As text, resnet21 is as close to resnet32 as to resnet20.
    return f"did you mean {min(close, key=lambda each: abs(_digits(each) - _digits(name)))}?"


def _digits(name: str) -> int:
    return int("".join(filter(str.isdecimal, name)) or 0)


def _zoo(name: str) -> _Zoo:
    prefix, colon, rest = name.partition(":")
    if not colon:
        return _OwnZoo(name)
    if prefix == "torchvision":
        return TorchvisionZoo(rest)
    if prefix == "timm":
        return TimmZoo(rest)
    return FactoryZoo(prefix, rest)
