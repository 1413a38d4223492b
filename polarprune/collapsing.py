"""Decisions -> smaller network, end to end."""

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from polarprune.errors import Refused
from polarprune.gates import GatedNetwork
from polarprune.graph.cut import Cut, cut_graph
from polarprune.graph.layers import set_mode
from polarprune.graph.normalise import normalise
from polarprune.graph.sites import Analysis, analyse, example_like

# Where a collapsed GraphModule carries its own description (GraphModule.meta survives deepcopy).
META = "polarprune"


@dataclass(frozen=True)
class Description:
    """What a collapsed network knows about itself.

    Attributes:
        input_shape: (1, ...) of one image.
        blocks_removed: residual blocks of the base network that have no operator left.
        kept: per site of the base network (kind, units kept, units).
    """

    input_shape: tuple[int, ...]
    blocks_removed: int
    kept: dict[str, tuple[str, int, int]]


def collapse(net: GatedNetwork | nn.Module) -> nn.Module:
    """The smaller dense network that a gated network's decisions leave.

    Plain torch layers in a torch.fx.GraphModule with its own weights; the input is untouched. A
    network that is collapsed already comes back as an equal copy.

    Exactness: in float64, equal to the frozen gated network to 1e-9 relative, in both modes.

    Raises:
        Refused: the network is neither gated nor collapsed.
    """
    if isinstance(net, GatedNetwork):
        return collapse_with_origins(net)[0]
    description = describe(net)
    if description is None or not isinstance(net, fx.GraphModule):
        raise Refused(
            f"collapse takes a gated network, got {type(net).__name__}; call attach_gates first"
        )
    plain = normalise(net, example_like(net, description.input_shape))
    analysis = analyse(plain, description.input_shape, blocks=False, channels=False)
    cut = cut_graph(plain, analysis, {})
    cut.graph_module.meta = dict(net.meta)
    return cut.graph_module


def collapse_with_origins(gated: GatedNetwork) -> tuple[fx.GraphModule, Cut]:
    """The smaller network, and for each of its tensors the part of the old one that it keeps."""
    decisions = gated.decisions()
    cut = gated.cut(decisions)
    set_mode(cut.graph_module, gated.training)
    cut.graph_module.meta[META] = Description(
        input_shape=gated.analysis.input_shape,
        blocks_removed=blocks_removed(gated.analysis, cut.graph_module),
        kept={
            site.name: (site.kind, int(decisions[site.name].sum()), site.units)
            for site in gated.sites
        },
    )
    return cut.graph_module, cut


def blocks_removed(analysis: Analysis, small: fx.GraphModule) -> int:
    """Blocks whose branch has no operator left in the small graph."""
    left = {node.name for node in small.graph.nodes}
    return sum(not (block.private & left) for block in analysis.additions.values())


def describe(net: nn.Module) -> Description | None:
    """The description of a collapsed or loaded network, None for any other."""
    meta: dict[str, Any] = getattr(net, "meta", {})
    found = meta.get(META)
    return found if isinstance(found, Description) else None
