"""Classes of channels that lie in the same tensors, equally often.

What happens to one happens to all of them, so they are counted together.
"""

from dataclasses import dataclass

import numpy as np

from polarprune.graph.labels import Labels

ALWAYS = ""  # pinned by no one node: whatever is left out


@dataclass(frozen=True)
class ClassGroup:
    """Some classes, by their root labels, in the order in which they lie in their first tensor.

    Attributes:
        earliest: the first tensor that they lie in and that depends on the image; "" where they
            lie in none.
        pinned_by: the nodes for whose sake they may not be cut; ALWAYS among them where it is not
            for one's sake.
    """

    members: np.ndarray
    earliest: str
    pinned_by: frozenset[str]


def always_gone(labels: Labels) -> np.ndarray:
    """Per label whether its class is cut whatever is decided: unread, or never written."""
    count = labels.count
    read, written = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    for mix in labels.mixes:
        if not mix.only_ties:
            read[labels.roots[mix.inputs]] = True
    written[labels.roots[np.flatnonzero(labels.written)]] = True
    kept = read & written
    kept[list(labels.pinned_roots())] = True
    gone: np.ndarray = ~kept[labels.roots]
    return gone


def group_classes(labels: Labels, fed: set[str]) -> list[ClassGroup]:
    """All classes that can be left at all, in groups; in the order of their first members.

    Args:
        fed: the nodes that depend on the image.
    """
    count = labels.count
    # Tensors that share their labels (an activation and what it reads) are looked at once;
    # parameters last, for a gate cannot look at them.
    distinct: dict[int, tuple[str, np.ndarray]] = {}
    for name, tensor in sorted(labels.tensors.items(), key=lambda item: item[0] not in fed):
        distinct.setdefault(id(tensor.ids), (name, tensor.ids))
    tensors = list(distinct.values())
    # Per class: its first tensor and position, and a fingerprint of where it lies how often.
    nowhere = np.iinfo(np.int64).max
    first = np.full(count, nowhere, dtype=np.int64)
    prints = np.zeros((2, count), dtype=np.uint64)
    widest = 1 + max((len(ids) for _, ids in tensors), default=0)
    generator = np.random.default_rng(0)
    random = generator.integers(1, 2**63, size=(2, len(tensors)), dtype=np.uint64)
    seen = np.zeros(count, dtype=np.int64)
    for place, (_, ids) in enumerate(tensors):
        roots, at = labels.roots[ids], np.arange(len(ids))
        seen[roots] = at
        counts = np.ones(1, dtype=np.int64)
        if not np.array_equal(seen[roots], at):  # some class comes more than once
            roots, at, counts = np.unique(roots, return_index=True, return_counts=True)
        first[roots] = np.minimum(first[roots], place * widest + at)
        prints[:, roots] += random[:, place, None] * counts.astype(np.uint64)
    pinners = sorted({node for _, node in labels.pinned_by})
    marks = generator.integers(1, 2**63, size=(2, len(pinners)), dtype=np.uint64)
    holds = {node: np.zeros(count, dtype=bool) for node in pinners}
    for ids, node in labels.pinned_by:
        holds[node][labels.roots[ids]] = True
    for node, mark in zip(pinners, marks.T, strict=True):
        prints[:, holds[node]] += mark[:, None]
    roots_only = labels.roots == np.arange(count)
    found = np.flatnonzero(roots_only & ~always_gone(labels))
    found = found[np.lexsort((first[found], *prints[:, found]))]
    bounds = np.flatnonzero((np.diff(prints[:, found]) != 0).any(0)) + 1
    groups = []
    for members in np.split(found, bounds) if len(found) else []:
        lead = members[0]
        earliest = "" if first[lead] == nowhere else tensors[int(first[lead]) // widest][0]
        pinned_by = frozenset(node for node in pinners if holds[node][lead])
        groups.append((first[lead], ClassGroup(members, earliest, pinned_by)))
    return [found_group for _, found_group in sorted(groups, key=lambda pair: pair[0])]
