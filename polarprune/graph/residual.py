"""Which additions are residual: a branch that can be left out, beside a shortcut.

An addition a + b is residual when the part of the graph that only a needs and the part that only
b needs both start at the same single tensor. A side without a mixing operator is the shortcut;
where both have one, the side with more work is the branch.
"""

from dataclasses import dataclass

from torch import Tensor, fx

from polarprune.graph.operators import is_addition


@dataclass(frozen=True)
class ResidualAddition:
    """One addition whose branch can go; all names are node names."""

    addition: str
    branch: str
    shortcut: str
    start: str
    private: frozenset[str]


def residual_additions(
    graph: fx.Graph, macs: dict[str, int], values: dict[str, object]
) -> tuple[list[ResidualAddition], list[tuple[str, str]]]:
    """All residual additions in graph order, and the others with the reason they are none.

    Args:
        macs: multiply-accumulates of each mixing node.
        values: each node's value as run_for_values gives it.
    """
    nodes = list(graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    ancestors: dict[fx.Node, int] = {}  # bit sets: each node itself and all it is computed from
    for node in nodes:
        bits = 1 << place[node]
        for source in node.all_input_nodes:
            bits |= ancestors[source]
        ancestors[node] = bits

    def members(bits: int) -> list[fx.Node]:
        return [node for node in nodes if bits >> place[node] & 1]

    found, others = [], []
    for node in nodes:
        if not is_addition(node):
            continue
        left, right = (arg for arg in node.args if isinstance(arg, fx.Node))
        shapes = {_shape(values[n.name]) for n in (left, right, node)}
        if len(shapes) > 1:
            others.append((node.name, "an addition that broadcasts"))
            continue
        sides = []
        for side, other in ((left, right), (right, left)):
            private = members(ancestors[side] & ~ancestors[other])
            inside = set(private)
            edge = {n for p in private for n in p.all_input_nodes if n not in inside} or {side}
            work = sum(macs.get(p.name, 0) for p in private)
            mixes = any(p.name in macs for p in private)
            sides.append((side, private, edge, work, mixes))
        starts = sides[0][2] | sides[1][2]
        if len(starts) != 1:
            others.append((node.name, "a sum whose terms do not start at one tensor"))
            continue
        if not sides[0][4] and not sides[1][4]:
            others.append((node.name, "a sum of which no term has a convolution"))
            continue
        branch, shortcut = sorted(sides, key=lambda side: (side[4], side[3]), reverse=True)
        found.append(
            ResidualAddition(
                addition=node.name,
                branch=branch[0].name,
                shortcut=shortcut[0].name,
                start=next(iter(starts)).name,
                private=frozenset(p.name for p in branch[1]),
            )
        )
    return found, others


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()
