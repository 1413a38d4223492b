"""Does memory grow? The slope of resident memory over time, with its interval."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_SECONDS = 300.0
"""Neighbouring samples are alike, so whole blocks of them are drawn."""
DRAWS = 1000
CONFIDENCE = 0.95
LEAST_SAMPLES = 6

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Trend:
    """kB an hour: the Theil-Sen slope and the 95 % interval of a block bootstrap."""

    slope: float
    low: float
    high: float
    samples: int
    blocks: int


def memory_trend(seconds: Values, kilobytes: Values, seed: int) -> Trend | None:
    """The trend; None of so few samples that none can be told.

    The residuals about the fitted line are drawn in blocks of five minutes and put back on it, and
    each such series is fitted anew.

    >>> hour = np.arange(0.0, 3600.0, 10.0)
    >>> noise = np.random.default_rng(0).standard_normal(len(hour))
    >>> found = memory_trend(hour, 5e4 + 100 * hour / 3600 + noise, seed=0)
    >>> found.low < 100 < found.high and found.high - found.low < 2
    True
    """
    count = len(seconds)
    if count < LEAST_SAMPLES:
        return None
    hours = seconds / 3600.0
    slope = _theil_sen(hours, kilobytes)
    fitted = np.median(kilobytes - slope * hours) + slope * hours
    residuals = kilobytes - fitted
    length = max(1, min(count // 3, round(BLOCK_SECONDS / float(np.median(np.diff(seconds))))))
    generator = np.random.default_rng(seed)
    blocks = -(-count // length)
    slopes = []
    for _ in range(DRAWS):
        starts = generator.integers(0, count - length + 1, blocks)
        drawn = np.concatenate([residuals[start : start + length] for start in starts])[:count]
        slopes.append(_theil_sen(hours, fitted + drawn))
    low, high = np.quantile(slopes, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Trend(slope, float(low), float(high), count, blocks)


def _theil_sen(x: Values, y: Values) -> float:
    """The median slope of all pairs."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))
