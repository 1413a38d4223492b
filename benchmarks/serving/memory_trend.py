"""Does memory grow? The slope of resident memory over time, with its interval."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BLOCK_SECONDS = 300.0
"""Neighbouring samples are alike: what an allocator keeps, it keeps for minutes."""
CONFIDENCE = 0.95
LEAST_BLOCKS = 4

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Trend:
    """kB an hour: the least squares' slope over the means of blocks, and its 95 % interval."""

    slope: float
    low: float
    high: float
    blocks: int
    samples: int


def memory_trend(seconds: Values, kilobytes: Values) -> Trend | None:
    """The trend; None of fewer than four blocks of five minutes.

    One mean is taken of each block, and the interval is Student's, of their residuals: single
    samples are not independent, and an interval that takes them for it is far too narrow.

    >>> hour = np.arange(0.0, 3600.0, 10.0)
    >>> noise = np.random.default_rng(0).standard_normal(len(hour))
    >>> found = memory_trend(hour, 5e4 + 100 * hour / 3600 + noise)
    >>> found.low < 100 < found.high and found.high - found.low < 2
    True
    """
    if not len(seconds):
        return None
    numbers = ((seconds - seconds[0]) // BLOCK_SECONDS).astype(int)
    whole = [n for n in range(numbers[-1] + 1) if np.sum(numbers == n) > np.sum(numbers == 0) / 2]
    if len(whole) < LEAST_BLOCKS:
        return None
    hours = np.array([seconds[numbers == n].mean() / 3600 for n in whole])
    means = np.array([kilobytes[numbers == n].mean() for n in whole])
    fit = stats.linregress(hours, means)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(whole) - 2) * fit.stderr
    slope = float(fit.slope)
    return Trend(slope, slope - float(half), slope + float(half), len(whole), len(seconds))
