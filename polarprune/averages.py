"""An average of a network, kept while it trains: torch's AveragedModel, timm's ModelEma."""

from typing import Protocol

from torch import nn

from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork


class Averaged(Protocol):
    """An average of a network that is kept beside it."""

    module: nn.Module


def check_average(ema: Averaged | None) -> Averaged | None:
    """The same, if it averages a gated network.

    Raises:
        ConfigError: it averages something else.
    """
    if ema is not None and not isinstance(ema.module, GatedNetwork):
        raise ConfigError(
            f"ema.module is a {type(ema.module).__name__}; average the gated network: "
            "AveragedModel(gated, ...)"
        )
    return ema


def gated_in(ema: Averaged) -> GatedNetwork:
    """The network that an average holds."""
    assert isinstance(ema.module, GatedNetwork)
    return ema.module
