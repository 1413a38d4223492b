"""Which channel counts of a layer are worth measuring, and which multiples make a difference."""

from collections.abc import Sequence
from statistics import median

import numpy as np

from polarprune.latency_table import Staircase

CANDIDATES = (2, 4, 8, 16, 32)
WINDOW = 64  # neighbouring counts of a staircase: two steps of the largest multiple
# Times of neighbouring counts that differ by less are noise, or not worth a class of their own.
WORTH_A_CLASS = 0.03
# A multiple counts that is seen in so many of the staircases: one alone is wrong by noise at times.
_SEEN_IN = 0.5
_SMALLEST_SHARE = 1 / 8  # of the smallest layer of a geometry


def staircase_counts(most: int) -> list[int]:
    """Neighbouring counts in the middle of what a layer may have, all of them if there are few."""
    if most <= WINDOW:
        return list(range(1, most + 1))
    first = max(1, (most // 2 - WINDOW // 2) // 32 * 32)
    return list(range(first, first + WINDOW + 1))


def find_multiples(staircases: Sequence[Staircase]) -> tuple[int, ...]:
    """The powers of two that make a difference to be a multiple of, ascending from 1."""
    found = [_multiples_of(staircase) for staircase in staircases]
    least = max(1.0, _SEEN_IN * len(found))
    return (1, *(each for each in CANDIDATES if sum(each in one for one in found) >= least))


def _multiples_of(staircase: Staircase) -> list[int]:
    """Each candidate's own counts are held against those of the last one that made a difference.

    Its own are multiples of it and of no larger candidate; the trend along the counts is out.
    """
    pairs = list(zip(staircase.counts, _deviations(staircase), strict=True))
    kept = [1]
    for candidate in CANDIDATES:
        larger = 2 * candidate if candidate < CANDIDATES[-1] else 0
        own = [d for c, d in pairs if c % candidate == 0 and (not larger or c % larger)]
        others = [d for c, d in pairs if c % kept[-1] == 0 and c % candidate]
        if own and others and abs(median(own) - median(others)) > WORTH_A_CLASS:
            kept.append(candidate)
    return kept


def _deviations(staircase: Staircase) -> list[float]:
    """Of each time from a line through its neighbours, as a share of it."""
    counts, ms = np.asarray(staircase.counts, float), np.asarray(staircase.ms)
    found = []
    for count, time in zip(counts, ms, strict=True):
        near = np.abs(counts - count) <= CANDIDATES[-1] / 2
        if near.sum() < 3:
            found.append(0.0)
            continue
        expected = float(np.polynomial.Polynomial.fit(counts[near], ms[near], 1)(count))
        found.append(float(time) / expected - 1.0 if expected > 0 else 0.0)
    return found


def grid_counts(mosts: Sequence[int], multiples: Sequence[int]) -> list[int]:
    """For each class some counts from few to all.

    Args:
        mosts: what each of the layers of a geometry has; a class may be absent of small layers.
    """
    most, least = max(mosts), min(mosts) * _SMALLEST_SHARE
    wanted = [most, 3 * most / 4]
    while wanted[-1] > least:
        wanted.append(most / 2 if len(wanted) == 2 else wanted[-1] / 2)
    found = {most}
    for place, multiple in enumerate(multiples):
        larger = multiples[place + 1 :]
        own = [
            count
            for count in range(multiple, most + 1, multiple)
            if all(count % other for other in larger)
        ]
        # In the middle of a step: next to its end all would look as good as the full step.
        middle = multiples[-1] / 2 if larger else 0
        for level in wanted if own else ():
            target = max(level - middle, level / 2)
            found.add(min(own, key=lambda count: (abs(count - target), count)))
    return sorted(found)
