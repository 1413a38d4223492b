"""Part of every stage: drop what nobody reads."""

from torch import fx


def drop_dead(graph: fx.Graph) -> bool:
    """Erase operators without readers, in place; whether there were any.

    As fx.Graph.eliminate_dead_code, which examines the whole graph first, each time.
    """
    changed = False
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output") and not node.is_impure():
            graph.erase_node(node)
            changed = True
    return changed
