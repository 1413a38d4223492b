"""Where a picture of a graph puts its boxes and lines, in pixels.

Boxes lie on a grid. Lines are level or upright. They run between rows, in the gutters between
columns, or straight down an empty column, and so never through a box.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from polarprune.inspection.graph_grid import Box, grid_of

_TRACK = 9  # between two lines side by side
_ROW_GAP, _GUTTER = 30, 22  # without lines and regions
_PORT = 16  # between two lines that enter a box from above
_SIDE, _TITLE = 7, 15  # a region's edge; the room for its title
_MARGIN = 12

Point = tuple[float, float]


@dataclass(frozen=True)
class Rect:
    """A placed box or region."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """Its centre from left to right."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height


@dataclass(frozen=True)
class Line:
    """The corners of the line from one box to another."""

    source: int
    target: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Layout:
    """The picture: `boxes` and `regions` in the order in which they were given.

    A region has a frame for each stretch of a column that holds its boxes and no others.
    """

    width: float
    height: float
    boxes: tuple[Rect, ...]
    regions: tuple[tuple[Rect, ...], ...]
    lines: tuple[Line, ...]


def lay_out(boxes: Sequence[Box], regions: Sequence[Sequence[int]]) -> Layout:
    """Place boxes, regions around some of them, and lines.

    Args:
        boxes: in the order of computation: each reads only earlier ones.
        regions: the boxes inside each region; the last one joins it to the stream around it.
    """
    return _Drawing(boxes, regions).finished()


class _Tracks:
    """Lines side by side in one corridor: a line takes the first track that is free over its span.

    One source has one track in a corridor, however many boxes its line goes to.
    """

    def __init__(self) -> None:
        self._spans: dict[int, tuple[float, float]] = {}
        self._track: dict[int, int] = {}
        self.count = 0

    def need(self, source: int, *ends: float) -> None:
        low, high = self._spans.get(source, (ends[0], ends[0]))
        self._spans[source] = min(low, *ends), max(high, *ends)

    def assign(self) -> None:
        ends: list[float] = []
        for source, (low, high) in sorted(self._spans.items(), key=lambda item: (item[1], item[0])):
            track = next((t for t, end in enumerate(ends) if end < low), len(ends))
            ends[track:] = [high, *ends[track + 1 :]]
            self._track[source] = track
        self.count = len(ends)

    def offset(self, source: int) -> int:
        return _TRACK * self._track[source]


class _Drawing:
    """One layout in the making."""

    def __init__(self, boxes: Sequence[Box], regions: Sequence[Sequence[int]]) -> None:
        self.boxes = boxes
        grid = grid_of(boxes, regions)
        self.row, self.column, self.next_below = grid.row, grid.column, grid.next_below
        self.level = _levels(regions)
        self.stretches = [self._stretches(inside) for inside in regions]
        self.rows = 1 + max(self.row, default=0)
        self.columns = 1 + max(self.column, default=0)
        self.gaps: dict[int, _Tracks] = defaultdict(_Tracks)  # below each row
        self.gutters: dict[int, _Tracks] = defaultdict(_Tracks)  # left of each column
        self.way = {
            (source, target): self._way(source, target)
            for target, box in enumerate(boxes)
            for source in box.sources
        }
        for corridor in (*self.gaps.values(), *self.gutters.values()):
            corridor.assign()
        self.wide = [0] * self.columns  # the widest box of each column
        for place, box in enumerate(boxes):
            self.wide[self.column[place]] = max(self.wide[self.column[place]], box.width)
        self.left, self.gutter_left, self.width = self._across()
        self.top, self.gap_top, self.height = self._down()

    def finished(self) -> Layout:
        placed = tuple(self._rect(place) for place in range(len(self.boxes)))
        lines = []
        for target in range(len(self.boxes)):
            lines += self._lines_to(target, placed)
        regions = tuple(
            tuple(self._frame(placed, stretch, level) for stretch in stretches)
            for stretches, level in zip(self.stretches, self.level, strict=True)
        )
        return Layout(self.width, self.height, placed, regions, tuple(lines))

    def _way(self, source: int, target: int) -> int | None:
        """The gutter a line takes; None where it goes down a gap or an empty column."""
        row, column = self.row[target], self.column[target]
        above, beside = self.row[source], self.column[source]
        if column == beside and self.next_below[source] == target:
            return None
        if row == above + 1:
            self.gaps[above].need(source, beside, column)
            return None
        gutter = column if beside < column else column + 1
        self.gutters[gutter].need(source, above, row)
        if beside not in (gutter - 1, gutter):
            self.gaps[above].need(source, beside, gutter - 0.5)
        return gutter

    def _across(self) -> tuple[list[float], list[float], float]:
        """The left edge of each column and of the lines left of it, and the width of the whole."""
        side = _SIDE * max(self.level, default=0)
        left, gutter_left, x = [], [], float(_MARGIN)
        for column in range(self.columns + 1):
            count = self.gutters[column].count
            space = _GUTTER if 0 < column < self.columns or count else 0
            gutter_left.append(x + side + space / 2)
            x += 2 * side + space + _TRACK * max(0, count - 1)
            left.append(x)
            x += self.wide[column] if column < self.columns else 0
        return left, gutter_left, x + _MARGIN

    def _down(self) -> tuple[list[float], list[float], float]:
        """The top of each row, of the lines below it, and the height of the whole."""
        tall, above, below = ([0] * self.rows for _ in range(3))
        for place, box in enumerate(self.boxes):
            tall[self.row[place]] = max(tall[self.row[place]], box.height)
        for stretches, level in zip(self.stretches, self.level, strict=True):
            for stretch in stretches:
                first, last = self.row[stretch[0]], self.row[stretch[-1]]
                above[first] = max(above[first], _TITLE * level)
                below[last] = max(below[last], _SIDE * level)
        top, gap_top, y = [], [], float(_MARGIN)
        for row in range(self.rows):
            y += above[row]
            top.append(y)
            y += tall[row] + below[row]
            gap_top.append(y + _ROW_GAP / 2)
            y += _ROW_GAP + _TRACK * max(0, self.gaps[row].count - 1)
        return top, gap_top, y - _ROW_GAP + _MARGIN

    def _rect(self, place: int) -> Rect:
        box, column = self.boxes[place], self.column[place]
        x = self.left[column] + (self.wide[column] - box.width) / 2
        return Rect(x, self.top[self.row[place]], box.width, box.height)

    def _frame(self, placed: Sequence[Rect], stretch: Sequence[int], level: int) -> Rect:
        wide = self.wide[self.column[stretch[0]]] + 2 * _SIDE * level
        top = placed[stretch[0]].y - _TITLE * level
        bottom = placed[stretch[-1]].bottom + _SIDE * level
        return Rect(placed[stretch[0]].middle - wide / 2, top, wide, bottom - top)

    def _stretches(self, inside: Sequence[int]) -> list[list[int]]:
        """The boxes of a region, column by column, without others in between."""
        found: list[list[int]] = []
        for place in sorted(inside, key=lambda p: (self.column[p], self.row[p])):
            if found and self.next_below[found[-1][-1]] == place:
                found[-1].append(place)
            else:
                found.append([place])
        return sorted(found, key=lambda stretch: self.row[stretch[0]])

    def _lines_to(self, target: int, placed: Sequence[Rect]) -> list[Line]:
        """The lines into one box: from above side by side, from the sides one below another."""
        sources = self.boxes[target].sources
        here = placed[target]
        ports: dict[int, float] = {}
        for side in (-1, 1):
            outside = [
                s
                for s in sources
                if self.way[s, target] is None and (self.column[s] - self.column[target]) * side > 0
            ]
            outside.sort(key=lambda s: abs(self.column[s] - self.column[target]))
            step = min(_PORT, (here.width / 2 - 6) / max(1, len(outside)))
            ports |= {s: here.middle + side * step * (1 + n) for n, s in enumerate(outside)}
        entering = [s for s in sources if self.way[s, target] is not None]
        lines = []
        for source in sources:
            there, gutter = placed[source], self.way[source, target]
            if gutter is None:
                points = self._from_above(source, there, ports.get(source, here.middle), here.y)
            else:
                share = (1 + entering.index(source)) / (1 + len(entering))
                points = self._through(gutter, source, target, there, here, 0.1 + 0.55 * share)
            lines.append(Line(source, target, points))
        return lines

    def _from_above(self, source: int, there: Rect, x: float, y: float) -> tuple[Point, ...]:
        start = (there.middle, there.bottom)
        if x == there.middle:
            return start, (x, y)
        level = self._track_y(source)
        return start, (there.middle, level), (x, level), (x, y)

    def _through(
        self, gutter: int, source: int, target: int, there: Rect, here: Rect, share: float
    ) -> tuple[Point, ...]:
        """Out of a box, down a gutter, and into the side of another."""
        x = self.gutter_left[gutter] + self.gutters[gutter].offset(source)
        y = here.y + share * here.height
        end = (here.x if gutter == self.column[target] else here.x + here.width, y)
        column = self.column[source]
        if column in (gutter - 1, gutter):
            edge = there.x if column == gutter else there.x + there.width
            level = there.y + 0.85 * there.height
            return (edge, level), (x, level), (x, y), end
        level = self._track_y(source)
        return (there.middle, there.bottom), (there.middle, level), (x, level), (x, y), end

    def _track_y(self, source: int) -> float:
        row = self.row[source]
        return self.gap_top[row] + self.gaps[row].offset(source)


def _levels(regions: Sequence[Sequence[int]]) -> list[int]:
    """How deep regions lie inside each region, itself included."""
    levels = [1] * len(regions)
    around: dict[int, int] = {}
    for place in sorted(range(len(regions)), key=lambda p: (len(regions[p]), p)):
        levels[place] = 1 + max(around.get(inside, 0) for inside in regions[place])
        around |= dict.fromkeys(regions[place], levels[place])
    return levels
