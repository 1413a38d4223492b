"""Which additions are residual: a branch that can be left out, beside a shortcut.

An addition a + b is residual when

1. the part of the graph that only a needs and the part that only b needs both start at the same
   single tensor (a block with its shortcut, projections included), or
2. nothing with a mixing operator would die without the one term, while something would without
   the other (the fusion sums of HRNet: every term but the one that is there anyway).

A side without a mixing operator is the shortcut; where both have one, the side with more work is
the branch. So of a sum without an identity term one term is never a site.
"""

from dataclasses import dataclass

from torch import Tensor, fx

from polarprune.graph.operators import is_addition


@dataclass(frozen=True)
class ResidualAddition:
    """One addition whose branch can go; all names are node names.

    Attributes:
        start: the tensor at which the branch begins.
        private: what only the branch needs.
        removed: what nothing needs any more without the branch.
    """

    addition: str
    branch: str
    shortcut: str
    start: str
    private: frozenset[str]
    removed: frozenset[str]


@dataclass(frozen=True)
class _Side:
    node: fx.Node
    private: list[fx.Node]
    edge: set[fx.Node]
    work: int
    mixes: bool


def residual_additions(
    graph: fx.Graph, macs: dict[str, int], values: dict[str, object]
) -> tuple[list[ResidualAddition], list[tuple[str, str]]]:
    """All residual additions in graph order, and the others with the reason they are none.

    Args:
        macs: multiply-accumulates of each mixing node.
        values: each node's value as run_for_values gives it.
    """
    search = _Search(graph, macs)
    found: list[ResidualAddition] = []
    others: list[tuple[str, str]] = []
    for node in graph.nodes:
        if not is_addition(node):
            continue
        left, right = (arg for arg in node.args if isinstance(arg, fx.Node))
        if not all(isinstance(values[n.name], Tensor) for n in (left, right)):
            continue  # arithmetic on sizes
        shapes = {_shape(values[n.name]) for n in (left, right, node)}
        if len({_dtype(values[n.name]) for n in (left, right, node)}) > 1:
            others.append((node.name, "an addition of different types"))
            continue
        if len(shapes) > 1:
            others.append((node.name, "an addition that broadcasts"))
            continue
        outcome = search.classify(node, left, right)
        if isinstance(outcome, str):
            others.append((node.name, outcome))
        else:
            found.append(outcome)
    return found, others


class _Search:
    """Ancestors as bit sets: each node itself and all it is computed from."""

    def __init__(self, graph: fx.Graph, macs: dict[str, int]) -> None:
        self.nodes = list(graph.nodes)
        self.macs = macs
        self.place = {node: index for index, node in enumerate(self.nodes)}
        self.ancestors: list[int] = []
        self.inputs = sum(1 << i for i, n in enumerate(self.nodes) if n.op == "placeholder")
        for index, node in enumerate(self.nodes):
            bits = 1 << index
            for source in node.all_input_nodes:
                bits |= self.ancestors[self.place[source]]
            self.ancestors.append(bits)

    def classify(self, node: fx.Node, left: fx.Node, right: fx.Node) -> ResidualAddition | str:
        """The residual addition, or why it is none."""
        if left is right:
            return "a tensor added to itself"
        if not all(self.ancestors[self.place[side]] & self.inputs for side in (left, right)):
            return "a sum with a constant"
        sides = [self._side(left, right), self._side(right, left)]
        starts = sides[0].edge | sides[1].edge
        branch, shortcut = sorted(sides, key=lambda s: (s.mixes, s.work), reverse=True)
        if len(starts) == 1:
            if not branch.mixes:
                return "a sum of which no term has a convolution"
            removed = self._dead_without(node, branch.node)
            return self._found(node, branch, shortcut, next(iter(starts)), removed)
        dead = {side.node: self._dead_without(node, side.node) for side in sides}
        works = [any(n.name in self.macs for n in dead[side.node]) for side in sides]
        if works[0] == works[1]:
            return "a sum whose terms do not start at one tensor"
        branch, shortcut = sides if works[0] else sides[::-1]
        removed = dead[branch.node]
        inside = set(removed)
        edge = [n for p in removed for n in p.all_input_nodes if n not in inside]
        return self._found(node, branch, shortcut, max(edge, key=self.place.__getitem__), removed)

    def _found(
        self, node: fx.Node, branch: _Side, shortcut: _Side, start: fx.Node, removed: list[fx.Node]
    ) -> ResidualAddition:
        private = branch.private if set(removed) <= set(branch.private) else removed
        return ResidualAddition(
            addition=node.name,
            branch=branch.node.name,
            shortcut=shortcut.node.name,
            start=start.name,
            private=frozenset(p.name for p in private),
            removed=frozenset(p.name for p in removed),
        )

    def _side(self, side: fx.Node, other: fx.Node) -> _Side:
        bits = self.ancestors[self.place[side]] & ~self.ancestors[self.place[other]]
        private = self._members(bits)
        inside = set(private)
        edge = {n for p in private for n in p.all_input_nodes if n not in inside} or {side}
        work = sum(self.macs.get(p.name, 0) for p in private)
        return _Side(side, private, edge, work, any(p.name in self.macs for p in private))

    def _members(self, bits: int) -> list[fx.Node]:
        found = []
        while bits:
            low = bits & -bits
            found.append(self.nodes[low.bit_length() - 1])
            bits ^= low
        return found

    def _dead_without(self, node: fx.Node, branch: fx.Node) -> list[fx.Node]:
        """The nodes that nothing needs any more once this branch is left out, in graph order."""
        dead: set[fx.Node] = set()
        todo = [branch]
        while todo:
            current = todo.pop()
            users = {u for u in current.users if not (u is node and current is branch)}
            if current not in dead and users <= dead and current.op != "placeholder":
                dead.add(current)
                todo += current.all_input_nodes
        return sorted(dead, key=self.place.__getitem__)


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _dtype(value: object) -> object:
    return value.dtype if isinstance(value, Tensor) else None
