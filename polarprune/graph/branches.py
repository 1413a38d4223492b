"""Which operand of a residual addition is its branch, in a graph of which parts have gone."""

from torch import fx

from polarprune.errors import Refused
from polarprune.graph.labels import Labels
from polarprune.graph.residual import ResidualAddition


def branch_of(addition: fx.Node, block: ResidualAddition, labels: Labels) -> str:
    """The operand that only the block computes.

    Args:
        block: as it was found in the whole network.
        labels: of the whole network.

    Raises:
        Refused: there is none any more.
    """
    for operand in addition.all_input_nodes:
        node: fx.Node | None = operand
        while node is not None and node.name not in labels.tensors:
            node = node.all_input_nodes[0] if node.all_input_nodes else None
        if node is not None and node.name in block.private:
            return operand.name
    raise Refused(f"of the block at {addition.name} the branch is not there any more")
