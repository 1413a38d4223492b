"""The row and the column of each box of a picture: layers from top to bottom.

A box lies one row below the lowest it reads and, where it can, in the column of the box it goes
on from.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """What is to be placed: its size and what it reads.

    `joins`: it goes on from a box that joins too, where it reads one.
    """

    width: int
    height: int
    sources: tuple[int, ...]
    joins: bool = False


@dataclass(frozen=True)
class Grid:
    """Row, column and the next box below in the same column (None: the last) of each box."""

    row: list[int]
    column: list[int]
    next_below: list[int | None]


def grid_of(boxes: Sequence[Box], regions: Sequence[Sequence[int]]) -> Grid:
    """Place boxes; regions as in graph_layout.lay_out."""
    rows = _rows(boxes)
    columns = _columns(boxes, rows, _going_on(boxes, regions))
    return Grid(rows, columns, _next_below(rows, columns))


def _rows(boxes: Sequence[Box]) -> list[int]:
    """One below the lowest box that is read."""
    rows: list[int] = []
    for box in boxes:
        rows.append(1 + max((rows[source] for source in box.sources), default=-1))
    return rows


def _going_on(boxes: Sequence[Box], regions: Sequence[Sequence[int]]) -> set[int]:
    """Boxes with which a region begins that comes back to the stream they read."""
    found = set()
    for inside in regions:
        stream = set(boxes[inside[-1]].sources).difference(inside)
        found |= {place for place in inside[:-1] if stream.intersection(boxes[place].sources)}
    return found


def _columns(boxes: Sequence[Box], rows: Sequence[int], going_on: set[int]) -> list[int]:
    """Row by row: the column of the box that is gone on from, or the nearest that is free.

    Of several that go on from one box, one that comes back to its stream stays in its column,
    else that with the longest way to the end.
    """
    to_end = [0] * len(boxes)
    for place in reversed(range(len(boxes))):
        for source in boxes[place].sources:
            to_end[source] = max(to_end[source], 1 + to_end[place])
    in_row: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        in_row[row].append(place)
    columns = [0] * len(boxes)
    for row in sorted(in_row):
        wish = {
            place: columns[_goes_on_from(boxes, rows, place)] if boxes[place].sources else 0
            for place in in_row[row]
        }
        taken: set[int] = set()
        for place in sorted(in_row[row], key=lambda p: (p not in going_on, -to_end[p], p)):
            if wish[place] not in taken:
                taken.add(wish[place])
                columns[place] = wish.pop(place)
        for place, wished in wish.items():
            near = (wished + way * step for step in range(1, len(boxes) + 1) for way in (1, -1))
            columns[place] = next(c for c in near if c >= 0 and c not in taken)
            taken.add(columns[place])
    return columns


def _goes_on_from(boxes: Sequence[Box], rows: Sequence[int], place: int) -> int:
    """Of a joining box the one before it on its stream, else the lowest."""
    return max(
        boxes[place].sources,
        key=lambda source: (boxes[place].joins and boxes[source].joins, rows[source], -source),
    )


def _next_below(rows: Sequence[int], columns: Sequence[int]) -> list[int | None]:
    """The next box below each box in its column."""
    found: list[int | None] = [None] * len(rows)
    lowest: dict[int, int] = {}
    for place in sorted(range(len(rows)), key=lambda p: -rows[p]):
        found[place] = lowest.get(columns[place])
        lowest[columns[place]] = place
    return found
