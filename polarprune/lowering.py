"""Any network as plain torch layers in a graph, with nothing cut."""

from torch import Tensor, fx, nn

from polarprune.attaching import attach_gates
from polarprune.collapsing import collapse_with_origins, describe


def plain_network(net: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """The network as a GraphModule of plain layers: what a collapse gives with all gates open.

    Args:
        net: left unmodified; one that is collapsed already is returned as it is.
    """
    if isinstance(net, fx.GraphModule) and describe(net) is not None:
        return net
    gated = attach_gates(net, example_input, blocks=False, channels=False)
    return collapse_with_origins(gated)[0]
