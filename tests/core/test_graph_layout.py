"""A layout of any graph is readable: nothing overlaps, and no line runs through a box."""

import time
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from polarprune.inspection.graph_grid import Box
from polarprune.inspection.graph_layout import Layout, Rect, lay_out


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Box], list[list[int]]]:
    boxes: list[Box] = []
    for place in range(draw(st.integers(1, 25))):
        sources = draw(st.sets(st.integers(0, place - 1), max_size=4)) if place else set()
        width, height = draw(st.sampled_from([(150, 40), (250, 90), (60, 30)]))
        boxes.append(Box(width, height, tuple(sorted(sources)), draw(st.booleans())))
    places = st.integers(0, len(boxes) - 1)
    regions = draw(st.lists(st.sets(places, min_size=1, max_size=6).map(sorted), max_size=4))
    return boxes, regions


def chain(length: int) -> list[Box]:
    """A residual network of blocks of two operators and an addition."""
    boxes = [Box(200, 80, ())]
    while len(boxes) < length:
        start = len(boxes) - 1
        boxes += [Box(200, 80, (start,)), Box(200, 80, (start + 1,))]
        boxes.append(Box(150, 50, (start + 2, start), joins=True))
    return boxes


def overlap(a: Rect, b: Rect) -> bool:
    return a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.bottom and b.y < a.bottom


def on_the_edge(x: float, y: float, box: Rect) -> bool:
    inside = box.x <= x <= box.x + box.width and box.y <= y <= box.bottom
    return inside and (x in (box.x, box.x + box.width) or y in (box.y, box.bottom))


def check(boxes: list[Box], regions: list[list[int]], found: Layout) -> None:
    assert [(r.width, r.height) for r in found.boxes] == [(b.width, b.height) for b in boxes]
    assert not any(overlap(a, b) for a, b in combinations(found.boxes, 2))
    for rect in (*found.boxes, *(frame for frames in found.regions for frame in frames)):
        assert rect.x >= 0
        assert rect.y >= 0
        assert rect.x + rect.width <= found.width
        assert rect.bottom <= found.height
    wanted = [(source, place) for place, box in enumerate(boxes) for source in box.sources]
    assert sorted((line.source, line.target) for line in found.lines) == sorted(wanted)
    for line in found.lines:
        source, target = found.boxes[line.source], found.boxes[line.target]
        assert source.y < target.y
        assert on_the_edge(*line.points[0], source)
        assert on_the_edge(*line.points[-1], target)
        for (x, y), (ex, ey) in pairwise(line.points):
            assert x == ex or y == ey
            part = Rect(min(x, ex), min(y, ey), abs(ex - x), abs(ey - y))
            assert not any(overlap(part, box) for box in found.boxes)
    for inside, frames in zip(regions, found.regions, strict=True):
        framed = {
            place
            for place, box in enumerate(found.boxes)
            if any(overlap(frame, box) for frame in frames)
        }
        assert framed == set(inside)


@given(graphs())
def test_boxes_keep_apart_and_lines_keep_clear_of_them(
    graph: tuple[list[Box], list[list[int]]],
) -> None:
    boxes, regions = graph
    found = lay_out(boxes, regions)
    check(boxes, regions, found)
    assert lay_out(boxes, regions) == found


def test_a_residual_chain_is_one_column_and_its_shortcuts_run_beside_it() -> None:
    boxes = chain(30)
    found = lay_out(boxes, [[1, 2, 3]])
    assert len({rect.middle for rect in found.boxes}) == 1
    [[frame]] = found.regions
    [shortcut] = [line for line in found.lines if (line.source, line.target) == (0, 3)]
    assert max(x for x, _ in shortcut.points) > frame.x + frame.width


def test_lines_of_different_boxes_do_not_run_in_each_other() -> None:
    found = lay_out(chain(30), [])
    upright = [
        (x, min(y, ey), max(y, ey), line.source)
        for line in found.lines
        for (x, y), (ex, ey) in pairwise(line.points)
        if x == ex
    ]
    for (x, low, high, one), (other_x, other_low, other_high, other) in combinations(upright, 2):
        if x == other_x and one != other:
            assert high <= other_low or other_high <= low


def test_the_time_grows_with_the_graph_not_with_its_square() -> None:
    def seconds(length: int) -> float:
        boxes = chain(length)
        start = time.process_time()
        lay_out(boxes, [])
        return time.process_time() - start

    seconds(500)
    assert seconds(8000) < 40 * seconds(500) + 1


def test_an_empty_graph_has_an_empty_picture() -> None:
    assert lay_out([], []).boxes == ()
