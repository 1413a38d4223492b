"""Second stage, the data: labels of channels, which of them are tied, which may not be cut.

Every channel of every tensor has a label. Labels tied together form a class: its positions are cut
together or not at all. label_pass.py gives the labels out.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

Key = tuple[str, str, int]  # (module or node, role, position): survives a cut of other nodes


@dataclass(frozen=True)
class Labelled:
    """The labels of one tensor.

    `compact` is an int64 tensor of the tensor's rank, with size 1 along every axis on which the
    labels do not vary; `shape` is the tensor's true shape.
    """

    compact: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, labels: Tensor) -> "Labelled":
        """Compress labels of full shape: an axis along which they are constant shrinks to one."""
        compact = labels
        for axis in range(labels.dim()):
            first = compact.narrow(axis, 0, 1) if compact.shape[axis] else compact
            if labels.stride(axis) == 0 or bool((compact == first).all()):
                compact = first
        return cls(compact.contiguous(), tuple(labels.shape))

    @classmethod
    def along(cls, labels: np.ndarray, axis: int, shape: tuple[int, ...]) -> "Labelled":
        """Labels that vary along one axis only."""
        view = [1] * len(shape)
        view[axis] = len(labels)
        return cls(torch.from_numpy(labels).reshape(view), shape)

    def full(self) -> Tensor:
        """The labels at the tensor's true shape, without copying."""
        return self.compact.expand(self.shape)

    def axes(self) -> list[int]:
        """The axes along which the labels vary."""
        return [axis for axis, size in enumerate(self.compact.shape) if size > 1]

    def vector(self, axis: int) -> np.ndarray | None:
        """The labels along one axis, or None where they vary along another one too."""
        axis %= len(self.shape)
        if any(other != axis for other in self.axes()):
            return None
        flat = self.compact.reshape(-1).numpy()
        return flat if len(flat) == self.shape[axis] else np.repeat(flat, self.shape[axis])


@dataclass(frozen=True)
class Mix:
    """One call of a mixing operator, with the labels of its input and output channels."""

    node: str
    source: str
    layer: str
    groups: int
    axis: int
    inputs: np.ndarray
    outputs: np.ndarray

    @property
    def depthwise(self) -> bool:
        """Each group reads a single channel: nothing is combined, labels only tie."""
        return self.groups > 1 and self.groups == len(self.inputs)


@dataclass
class Labels:
    """What the label pass found out about one graph."""

    tensors: dict[str, Labelled] = field(default_factory=dict)
    mixes: list[Mix] = field(default_factory=list)
    norms: dict[str, np.ndarray] = field(default_factory=dict)
    parameters: dict[str, Labelled] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    zero: list[bool] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    pins: dict[int, str] = field(default_factory=dict)
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    roots: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def new(
        self, owner: str, role: str, count: int, *, zero: bool = False, written: bool = True
    ) -> np.ndarray:
        """Fresh labels.

        zero: they stand for literal zeros.
        written: a value is made here (not merely passed on from a tied label).
        """
        start = len(self.keys)
        self.keys += [(owner, role, position) for position in range(count)]
        self.zero += [zero] * count
        self.written += [written and not zero] * count
        return np.arange(start, start + count, dtype=np.int64)

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Cut these together, position by position."""
        self.ties.append((left.reshape(-1), right.reshape(-1)))

    def pin(self, labels: Labelled | np.ndarray, reason: str) -> None:
        """Never cut these."""
        flat = labels.compact.reshape(-1).numpy() if isinstance(labels, Labelled) else labels
        for label in np.unique(flat):
            self.pins.setdefault(int(label), reason)

    def refuse(self, where: str, reason: str, *tensors: Labelled) -> None:
        """Pin tensors and remember why, for the user."""
        self.refused.append((where, reason))
        for tensor in tensors:
            self.pin(tensor, reason)

    def solve(self) -> None:
        """Union-find over all ties: smallest label of a class is its root (pointer jumping)."""
        roots = np.arange(len(self.keys), dtype=np.int64)
        if self.ties:
            left = np.concatenate([a for a, _ in self.ties])
            right = np.concatenate([b for _, b in self.ties])
            while True:
                low = np.minimum(roots[left], roots[right])
                before = roots.copy()
                np.minimum.at(roots, roots[left], low)
                np.minimum.at(roots, roots[right], low)
                while not np.array_equal(roots, roots[roots]):
                    roots = roots[roots]
                if np.array_equal(before, roots):
                    break
        self.roots = roots

    def pinned_roots(self) -> dict[int, str]:
        """Classes that may not be cut, with a reason each."""
        found: dict[int, str] = {}
        for label, reason in self.pins.items():
            found.setdefault(int(self.roots[label]), reason)
        return found
