"""Second stage, the data: labels of channels, which of them are tied, which may not be cut.

Every channel of every tensor has a label. Labels tied together form a class: its positions are cut
together or not at all. label_pass.py gives the labels out.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

Owner = tuple[str, str]  # (module or node, role): survives a cut of other nodes


@dataclass(frozen=True)
class Labelled:
    """The labels of one tensor, which vary along one axis at most.

    Attributes:
        ids: one label a position along `axis`; a single one where `axis` is None.
        axis: None where the whole tensor has one label.
        shape: the tensor's true shape.
    """

    ids: np.ndarray
    axis: int | None
    shape: tuple[int, ...]

    @classmethod
    def along(cls, ids: np.ndarray, axis: int, shape: tuple[int, ...]) -> "Labelled":
        """Labels that vary along one axis only (which may have a single position)."""
        if len(ids) == 1:
            return cls(ids, None, shape)
        return cls(ids, axis, shape)

    def full(self) -> Tensor:
        """The labels at the tensor's true shape, without copying."""
        view = [1] * len(self.shape)
        if self.axis is not None:
            view[self.axis] = len(self.ids)
        return torch.from_numpy(self.ids).reshape(view).expand(self.shape)

    def vector(self, axis: int) -> np.ndarray | None:
        """The labels along one axis, or None where they vary along another one."""
        axis %= len(self.shape)
        if self.axis == axis:
            return self.ids
        return np.repeat(self.ids, self.shape[axis]) if self.axis is None else None


def varying_axes(labels: Tensor) -> tuple[Tensor, list[int]]:
    """Labels of full shape, shrunk to size 1 along every axis on which they do not vary."""
    compact = labels
    axes = []
    for axis, size in enumerate(labels.shape):
        if size == 0:
            continue
        first = compact.narrow(axis, 0, 1)
        if size == 1 or labels.stride(axis) == 0 or bool((compact == first).all()):
            compact = first
        else:
            axes.append(axis)
    return compact, axes


def connected(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Union-find: per item the smallest one that it is connected with (pointer jumping)."""
    roots = np.arange(count, dtype=np.int64)
    while len(left):
        low = np.minimum(roots[left], roots[right])
        before = roots.copy()
        np.minimum.at(roots, roots[left], low)
        np.minimum.at(roots, roots[right], low)
        while True:
            jumped = roots[roots]
            if np.array_equal(jumped, roots):
                break
            roots = jumped
        if np.array_equal(before, roots):
            break
    return roots


def finest_axis(compact: np.ndarray, axes: list[int]) -> int:
    """The axis on which tying labels that share an index leaves most classes."""
    _, dense = np.unique(compact, return_inverse=True)
    dense = dense.reshape(compact.shape)
    best, most = axes[0], -1
    for axis in axes:
        rows = np.moveaxis(dense, axis, 0).reshape(compact.shape[axis], -1)
        left = np.repeat(rows[:, :1], rows.shape[1], axis=1).reshape(-1)
        roots = connected(int(dense.max()) + 1, left, rows.reshape(-1))
        classes = len(np.unique(roots))
        if classes > most:
            best, most = axis, classes
    return best


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
    def only_ties(self) -> bool:
        """Grouped: what goes in and comes out of a group is one class, cut or kept together.

        Such an operator does not keep a channel alive by reading it: someone has to read its own.
        """
        return self.groups > 1

    @property
    def depthwise(self) -> bool:
        """Each group reads a single channel: nothing is combined, labels only tie."""
        return self.groups > 1 and self.groups == len(self.inputs)


@dataclass
class Labels:
    """What the label pass found out about one graph.

    `parts` holds what a chunk or split gives: per getitem node (source, start, stop) along the
    axis of the channels. `makers` are the nodes that would make other values of literal zeros, with
    the labels that they are given.
    """

    tensors: dict[str, Labelled] = field(default_factory=dict)
    mixes: list[Mix] = field(default_factory=list)
    norms: dict[str, np.ndarray] = field(default_factory=dict)
    parameters: dict[str, Labelled] = field(default_factory=dict)
    parts: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    makers: list[tuple[str, np.ndarray]] = field(default_factory=list)
    count: int = 0
    owners: list[tuple[Owner, int, int]] = field(default_factory=list)  # of labels start..stop
    zeros: list[np.ndarray] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    pins: dict[int, str] = field(default_factory=dict)
    pinned_by: list[tuple[np.ndarray, str]] = field(default_factory=list)  # (labels, node or "")
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
        labels = np.arange(self.count, self.count + count, dtype=np.int64)
        self.owners.append(((owner, role), self.count, self.count + count))
        self.count += count
        self.written += [written and not zero] * count
        if zero and count:
            self.zeros.append(labels)
        return labels

    def is_zero(self, labels: np.ndarray) -> np.ndarray:
        """Which of these labels stand for literal zeros."""
        if not self.zeros:
            return np.zeros(labels.shape, dtype=bool)
        found: np.ndarray = np.isin(labels, np.concatenate(self.zeros))
        return found

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Cut these together, position by position."""
        if left is not right:
            self.ties.append((left.reshape(-1), right.reshape(-1)))

    def one_axis(self, labels: Tensor) -> Labelled | None:
        """Labels of full shape made to vary along one axis, by tying what shares an index on it.

        A cut leaves a rectangle: of the axes along which labels vary, only the finest can be cut.
        None where they vary along the batch.
        """
        shape = tuple(labels.shape)
        compact, axes = varying_axes(labels)
        if 0 in axes:
            self.pin(np.unique(compact.numpy()), "channels laid along the batch")
            return None
        if not axes:
            return Labelled(compact.reshape(-1)[:1].numpy(), None, shape)
        array = compact.numpy()
        axis = axes[0] if len(axes) == 1 else finest_axis(array, axes)
        rows = np.moveaxis(array, axis, 0).reshape(shape[axis], -1)
        ids = rows[:, 0]
        if rows.shape[1] > 1:
            real = np.argmax(
                ~self.is_zero(rows), axis=1
            )  # a label that is no literal zero stands for all
            ids = rows[np.arange(len(rows)), real]
            self.tie(np.repeat(ids[:, None], rows.shape[1], axis=1), rows)
        return Labelled(np.ascontiguousarray(ids), axis, shape)

    def pin(self, labels: Labelled | np.ndarray, reason: str, node: str = "") -> None:
        """Never cut these while a node is there; without one, never at all."""
        flat = np.unique(labels.ids if isinstance(labels, Labelled) else labels)
        self.pinned_by.append((flat, node))
        for label in flat:
            self.pins.setdefault(int(label), reason)

    def refuse(self, where: str, reason: str, *tensors: Labelled) -> None:
        """Pin tensors for a node's sake and remember why, for the user."""
        self.refused.append((where, reason))
        for tensor in tensors:
            self.pin(tensor, reason, where)

    def solve(self) -> None:
        """The class of each label: its smallest member is the root."""
        left = np.concatenate([a for a, _ in self.ties] or [np.zeros(0, dtype=np.int64)])
        right = np.concatenate([b for _, b in self.ties] or [np.zeros(0, dtype=np.int64)])
        self.roots = connected(self.count, left, right)

    def pinned_roots(self) -> dict[int, str]:
        """Classes that may not be cut, with a reason each."""
        found: dict[int, str] = {}
        for label, reason in self.pins.items():
            found.setdefault(int(self.roots[label]), reason)
        return found
