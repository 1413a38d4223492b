"""Networks from outside: torchvision, timm, and factories in the user's own packages."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torchvision
from torch import nn
from torchvision.models import segmentation

from polarprune.errors import BackendUnavailable, ConfigError, WeightsError, first_line
from polarprune.importing import import_named
from polarprune.networks.weights import copy_state

_IMAGENET_INPUT = (3, 224, 224)
_IMAGENET_CLASSES = 1000


class TorchvisionZoo:
    """`torchvision:NAME`: networks for classification and segmentation."""

    def __init__(self, name: str) -> None:
        self._segmentation = torchvision.models.list_models(segmentation)
        known = torchvision.models.list_models(torchvision.models) + self._segmentation
        if name not in known:
            raise ConfigError(
                _unknown("torchvision", name, known, "torchvision.models.list_models()")
            )
        self.name = name
        # The newest weights' description; nothing is downloaded for it.
        self._described: Any = torchvision.models.get_model_weights(name)["DEFAULT"]

    def build(self, num_classes: int | None, *, pretrained: bool) -> nn.Module:
        """The network without auxiliary heads.

        Pretrained with another class count, all but the classifier is pretrained, as in timm.
        """
        classes = self.default_classes() if num_classes is None else num_classes
        options: dict[str, Any] = {"num_classes": classes}
        if self.name in {"googlenet", "inception_v3"}:
            # Their published weights expect another input scale; init_weights left out, they warn.
            options |= {"aux_logits": False, "init_weights": True, "transform_input": pretrained}
        if self.name in self._segmentation:
            options["weights_backbone"] = None  # the default downloads
        net: nn.Module = torchvision.models.get_model(self.name, weights=None, **options)
        if pretrained:
            try:
                donor = torchvision.models.get_model(self.name, weights="DEFAULT", progress=False)
            except (OSError, RuntimeError) as error:
                raise _download_failed(f"torchvision:{self.name}", error) from error
            own = net.state_dict()
            state = {name: value for name, value in donor.state_dict().items() if name in own}
            if classes != self.default_classes():
                state |= {
                    name: value for name, value in own.items() if state[name].shape != value.shape
                }
            copy_state(net, state, source=f"torchvision:{self.name}")
        return net

    def input_size(self) -> tuple[int, int, int]:
        """The size that the published weights are evaluated at."""
        settings = self._described.transforms.keywords
        side = settings.get("crop_size") or settings.get("resize_size") or _IMAGENET_INPUT[1]
        return 3, int(side), int(side)

    def default_classes(self) -> int:
        """The class count of the published weights."""
        return len(self._described.meta["categories"])


class TimmZoo:
    """`timm:NAME`; timm is imported here and nowhere else."""

    def __init__(self, name: str) -> None:
        try:
            import timm
        except ImportError as error:
            raise BackendUnavailable(
                f"timm:{name} needs timm; install it with: pip install 'polarprune[timm]'"
            ) from error
        # Names of the form hf-hub:... would be looked up on the network.
        if not timm.is_model(name):
            raise ConfigError(_unknown("timm", name, timm.list_models(), "timm.list_models()"))
        self._timm = timm
        self.name = name

    def build(self, num_classes: int | None, *, pretrained: bool) -> nn.Module:
        """As `timm.create_model`."""
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        try:
            net: nn.Module = self._timm.create_model(self.name, pretrained=pretrained, **options)
        except Exception as error:
            # A download fails with whatever huggingface_hub, requests or urllib raise.
            if pretrained:
                raise _download_failed(f"timm:{self.name}", error) from error
            raise
        return net

    def input_size(self) -> tuple[int, int, int]:
        """The input size of timm's configuration."""
        config = self._timm.get_pretrained_cfg(self.name)
        if config is None:
            return _IMAGENET_INPUT
        channels, height, width = config.input_size
        return int(channels), int(height), int(width)

    def default_classes(self) -> int:
        """The class count of timm's configuration."""
        config = self._timm.get_pretrained_cfg(self.name)
        return _IMAGENET_CLASSES if config is None else int(config.num_classes)


class FactoryZoo:
    """`package.module:factory`: a function or class that gives a network.

    It is called with `num_classes` if it takes that name. The current directory is searched too.
    """

    def __init__(self, module_name: str, factory_name: str) -> None:
        self.name = f"{module_name}:{factory_name}"
        self._factory: Callable[..., Any] = import_named("model", self.name)
        if isinstance(self._factory, nn.Module):
            raise ConfigError(
                f"model {self.name!r} is a network; name a function that builds one instead"
            )

    def build(self, num_classes: int | None, *, pretrained: bool) -> nn.Module:
        """The network of the factory."""
        if pretrained:
            raise not_pretrained(self.name)
        options: dict[str, int] = {}
        if num_classes is not None and self._takes_num_classes():
            options["num_classes"] = num_classes
        try:
            net = self._factory(**options)
        except Exception as error:  # the user's code
            raise ConfigError(f"model {self.name!r} failed: {first_line(error)}") from error
        if not isinstance(net, nn.Module):
            raise ConfigError(
                f"model {self.name!r} gave {type(net).__name__}; it must give a torch.nn.Module"
            )
        return net

    def input_size(self) -> tuple[int, int, int]:
        """The factory's attribute `input_size`, else ImageNet's."""
        channels, height, width = getattr(self._factory, "input_size", _IMAGENET_INPUT)
        return int(channels), int(height), int(width)

    def default_classes(self) -> int:
        """The default of `num_classes`, else the width of the last linear layer."""
        if self._takes_num_classes():
            default = self._parameters()["num_classes"].default
            if isinstance(default, int):
                return default
        linear = [
            m for m in self.build(None, pretrained=False).modules() if isinstance(m, nn.Linear)
        ]
        if not linear:
            raise ConfigError(
                f"model {self.name!r} does not say how many classes it has; give --num-classes"
            )
        return linear[-1].out_features

    def _parameters(self) -> dict[str, inspect.Parameter]:
        try:
            return dict(inspect.signature(self._factory).parameters)
        except (TypeError, ValueError):  # callables written in C have none
            return {}

    def _takes_num_classes(self) -> bool:
        return "num_classes" in self._parameters()


def not_pretrained(name: str) -> ConfigError:
    """The error for `pretrained` where there are no published weights."""
    return ConfigError(f"model {name!r} has no pretrained weights to download; give a weights file")


def _unknown(zoo: str, name: str, known: Iterable[str], listing: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {zoo}:{close[0]}?" if close else f"see {listing}"
    return f"unknown model '{zoo}:{name}'; {hint}"


def _download_failed(name: str, error: BaseException) -> WeightsError:
    return WeightsError(
        f"the pretrained weights of {name} could not be downloaded ({first_line(error)}); "
        "give a weights file instead"
    )
