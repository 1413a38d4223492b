"""Channels on which a whole branch depends: where all of a site are closed, so is its block.

A convolution that reads nothing has a constant output, and a branch that cannot do without it is a
constant too; closing the block instead is what removes it. (The relaxation's authors remove such a
cell in the same way.)
"""

from collections import defaultdict

from torch import fx

from polarprune.graph.residual import ResidualAddition


def sites_of_cells(
    graph: fx.Graph, additions: dict[int, ResidualAddition], reads: dict[str, frozenset[int]]
) -> dict[int, list[int]]:
    """Per block site the channel sites without which nothing comes through its branch.

    Args:
        reads: per mixing node the sites that it reads, -1 for what belongs to none.
    """
    readers: dict[int, set[str]] = defaultdict(set)
    needs: dict[int, set[str]] = defaultdict(set)  # those that read nothing else
    for node, sites in reads.items():
        for site in sites:
            readers[site].add(node)
        if len(sites) == 1:
            needs[next(iter(sites))].add(node)
    nodes = {node.name: node for node in graph.nodes}
    cells: dict[int, list[int]] = {}
    for block, addition in additions.items():
        inside = [
            site
            for site, names in readers.items()
            if site >= 0
            and names <= addition.private
            and not _passes(nodes[addition.branch], addition.private, needs[site])
        ]
        if inside:
            cells[block] = sorted(inside)
    return cells


def _passes(branch: fx.Node, private: frozenset[str], stopped: set[str]) -> bool:
    """Whether something comes from outside to the branch's end by a way around these nodes."""
    todo, seen = [branch], {branch}
    while todo:
        node = todo.pop()
        if node.name not in private:
            return True
        if node.name not in stopped:
            new = [source for source in node.all_input_nodes if source not in seen]
            seen.update(new)
            todo += new
    return False
