"""Labels: which channels go together, where in a value they lie, and where they come from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Ids = npt.NDArray[np.int64]
Known = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Spread:
    """Where the channels of one value lie, and what is known of them.

    Attributes:
        axis: along it labels vary; along all others a channel is the same.
        labels: (n,), one a position; equal ones are cut together.
        known: (n,), the number that a position holds in every image at every place; NaN: unknown.
        start: the first of its n places among all positions of the graph.
    """

    axis: int
    labels: Ids
    known: Known
    start: int

    @property
    def positions(self) -> Ids:
        """Its places among all positions of the graph."""
        return np.arange(self.start, self.start + len(self.labels))


@dataclass(frozen=True)
class Flow:
    """Of one node: output positions, and the input positions that each is made of."""

    node: ir.Node
    outputs: Ids
    inputs: Ids


@dataclass(frozen=True)
class ConstantUse:
    """A constant that is cut with channels, at one input of one node."""

    node: ir.Node
    index: int
    axis: int
    labels: Ids


class Labels:
    """A union-find that is solved at once."""

    def __init__(self) -> None:
        self.count = 0
        self._ties: list[tuple[Ids, Ids]] = []
        self._pins: list[Ids] = []

    def new(self, count: int) -> Ids:
        """Labels that are tied to nothing yet."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie(self, some: Ids, others: Ids) -> None:
        """Cut these only together, position by position."""
        self._ties.append((some, others))

    def pin(self, ids: Ids) -> None:
        """Never cut these."""
        self._pins.append(ids)

    def roots(self) -> Ids:
        """Per label the smallest one of its class."""
        root = np.arange(self.count)
        if not self._ties:
            return root
        some = np.concatenate([a for a, _ in self._ties])
        others = np.concatenate([b for _, b in self._ties])
        while True:
            low = np.minimum(root[some], root[others])
            before = root.copy()
            # Both ends, and the roots that they had: else a long chain takes as many rounds.
            for ends in (some, others, before[some], before[others]):
                np.minimum.at(root, ends, low)
            root = root[root]
            if np.array_equal(root, before):
                return root

    def pinned(self, roots: Ids) -> Mask:
        """Per label whether its class holds a pinned one."""
        found = np.zeros(self.count, dtype=bool)
        for ids in self._pins:
            found[roots[ids]] = True
        return found[roots]
