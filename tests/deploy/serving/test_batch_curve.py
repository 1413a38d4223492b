"""How long batches take: measured on a virtual clock, read between the points."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarprune_deploy.serving.batch_curve import (
    LONGEST_SECONDS,
    NEARLY,
    REPEATS,
    BatchCurve,
    measure_curve,
)

SIZES = (1, 2, 4, 8, 16, 32, 64)


class VirtualEngine:
    """Takes `fixed + each * size` seconds, the first time of a size ten times that."""

    def __init__(self, fixed: float, each: float, noise: "np.random.Generator | None" = None):
        self.fixed, self.each, self.noise = fixed, each, noise
        self.now, self.runs = 0.0, list[int]()

    def cost(self, size: int) -> float:
        return self.fixed + self.each * size

    def clock(self) -> float:
        return self.now

    def __call__(self, size: int) -> None:
        factor = 1.0 if size in self.runs else 10.0
        if self.noise is not None:
            factor += float(self.noise.exponential(0.5))  # a neighbour only ever takes time
        self.now += factor * self.cost(size)
        self.runs.append(size)


costs = st.floats(1e-6, 0.04)


@st.composite
def curves(draw: st.DrawFn) -> BatchCurve:
    sizes = sorted(draw(st.sets(st.integers(1, 64), min_size=1, max_size=7)))
    steps = draw(st.lists(costs, min_size=len(sizes), max_size=len(sizes)))
    return BatchCurve(tuple(sizes), tuple(np.cumsum(steps).tolist()), draw(st.booleans()))


def test_each_size_is_measured_without_its_first_run() -> None:
    engine = VirtualEngine(fixed=0.004, each=0.001)
    curve = measure_curve(engine, SIZES, engine.clock)
    assert curve.sizes == SIZES
    np.testing.assert_allclose(curve.seconds, [engine.cost(size) for size in SIZES])
    assert engine.runs.count(8) == 1 + REPEATS


def test_sizes_that_no_longer_make_an_image_cheaper_are_not_measured() -> None:
    engine = VirtualEngine(fixed=0.0, each=0.001)
    curve = measure_curve(engine, SIZES, engine.clock)
    assert curve.sizes == (1, 2, 4), "two in a row bring nothing"
    assert curve.best_size == 1
    assert curve.window_seconds == pytest.approx(0, abs=1e-12)


def test_a_batch_that_takes_too_long_is_the_last_one_and_run_only_twice() -> None:
    engine = VirtualEngine(fixed=0.2, each=0.03)
    curve = measure_curve(engine, SIZES, engine.clock)
    assert curve.sizes == (1, 2), "the second passes the longest that anybody waits"
    assert curve.seconds[-1] > LONGEST_SECONDS
    assert engine.runs.count(2) == 2


def test_a_clock_that_does_not_move_gives_times_that_can_be_divided_by() -> None:
    curve = measure_curve(lambda size: None, (4,), lambda: 0.0)
    assert curve.seconds[0] > 0
    assert math.isfinite(curve.throughput(4))


@given(costs, costs, st.integers(0, 2**32 - 1))
def test_on_a_busy_machine_the_curve_never_falls_nor_passes_what_was_measured(
    fixed: float, each: float, seed: int
) -> None:
    engine = VirtualEngine(fixed, each, np.random.default_rng(seed))
    curve = measure_curve(engine, SIZES, engine.clock)
    taken = [curve.seconds_for(rows) for rows in range(1, 80)]
    assert all(a <= b for a, b in itertools.pairwise(taken))
    for size, seconds in zip(curve.sizes, curve.seconds, strict=True):
        assert seconds >= engine.cost(curve.sizes[0])
        assert curve.seconds_for(size) == seconds


@given(curves(), st.integers(1, 64))
def test_between_the_points_it_is_what_numpy_interpolates_or_the_next_point(
    curve: BatchCurve, rows: int
) -> None:
    if rows > curve.sizes[-1]:
        assert curve.seconds_for(rows) >= curve.seconds[-1]
    elif curve.filled_up:
        larger = [s for n, s in zip(curve.sizes, curve.seconds, strict=True) if n >= rows]
        assert curve.seconds_for(rows) == larger[0]
    else:
        expected = np.interp(rows, curve.sizes, curve.seconds)
        assert curve.seconds_for(rows) == pytest.approx(expected, rel=1e-9)


@given(st.floats(1e-4, 1.0), st.floats(1e-5, 0.1), st.integers(65, 500))
def test_beyond_the_last_point_it_goes_on_straight(fixed: float, each: float, rows: int) -> None:
    engine = VirtualEngine(fixed, each)
    curve = BatchCurve((1, 8, 64), tuple(engine.cost(size) for size in (1, 8, 64)))
    assert curve.seconds_for(rows) == pytest.approx(engine.cost(rows), rel=1e-6)


@given(curves())
def test_the_best_size_is_the_smallest_that_nearly_reaches_the_best_throughput(
    curve: BatchCurve,
) -> None:
    rates = {n: n / s for n, s in zip(curve.sizes, curve.seconds, strict=True)}
    good = [n for n in curve.sizes if rates[n] >= NEARLY * max(rates.values()) * (1 - 1e-12)]
    assert curve.best_size == good[0]


@given(curves())
def test_nobody_waits_longer_than_a_quarter_of_what_company_saves(curve: BatchCurve) -> None:
    alone = curve.seconds_for(1)
    saved = alone - curve.seconds_for(curve.best_size) / curve.best_size
    assert curve.window_seconds == pytest.approx(max(0.0, saved) / 4, abs=1e-12)


def test_an_engine_of_one_size_waits_to_fill_it() -> None:
    # One image costs it as much as eight do.
    assert BatchCurve((8,), (0.08,), filled_up=True).window_seconds == pytest.approx(0.0175)
