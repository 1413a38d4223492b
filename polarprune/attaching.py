"""From any network to one with gates."""

from typing import Any

from torch import Tensor, nn

from polarprune.collecting import paused_collection
from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork
from polarprune.graph.normalise import normalise
from polarprune.graph.sites import analyse
from polarprune.methods import build_method
from polarprune.option_values import check_range


def attach_gates(
    net: nn.Module,
    example_input: Tensor,
    method: str = "consensus",
    blocks: bool = True,
    channels: bool = True,
    align: int = 1,
    method_options: dict[str, Any] | None = None,
) -> GatedNetwork:
    """Put gates on every residual block and channel that can be cut exactly.

    Gates take the network's dtype, device and mode, and start open.

    Args:
        net: any torch.fx-traceable CNN; left unmodified.
        example_input: (n, ...); only shape, dtype and device matter.
        method: a name, or package.module:Class (methods/__init__.py).
        align: kept channel counts of a site are rounded up to a multiple of this.
        method_options: what only this method takes.

    Raises:
        Refused: the network cannot be traced.
        ConfigError: an unknown method or option, an align below 1, or nothing to gate for a method
            that takes no target (with a target, it is the target that cannot be reached).
    """
    check_range("align", align, 1)
    driver = build_method(method, method_options)
    with paused_collection():
        plain = normalise(net, example_input)
        shape = (1, *example_input.shape[1:])
        analysis = analyse(plain, shape, blocks=blocks, channels=channels, weighed=driver.weighs)
        if (blocks or channels) and not analysis.sites and not driver.bounded:
            raise ConfigError(
                f"there is nothing in this {type(net).__name__} that method {method!r} could gate"
            )
        return GatedNetwork(plain, analysis, driver, align)
