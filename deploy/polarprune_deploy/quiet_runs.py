"""Which of many runs were disturbed least.

What another process takes falls into few of a run's kernels and yet, on a busy machine, into most
runs: medians of all runs would book it as time between the kernels. So an explanation looks at the
third of the runs that the scheduler interrupted least and that were fastest. Verdicts are not made
of these: they are the bench's, from all samples.
"""

import math
import resource
import time
from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import TypeVar

T = TypeVar("T")

FEWEST = 3


def timed(call: Callable[[], object]) -> float:
    """The ms of one call."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def watched(call: Callable[[], object]) -> tuple[int, float]:
    """How often a CPU was taken from this process during a call, and its ms."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    took = timed(call)
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before, took


def quietest(runs: Sequence[T], order: Callable[[T], tuple[float, ...]]) -> list[T]:
    """A third of the runs, three at the least: the first by `order`."""
    return sorted(runs, key=order)[: max(FEWEST, len(runs) // 3)]


def median_noise(samples: Sequence[float]) -> float:
    """Half the width of a rough 95 % interval of the median, from the middle half's spread.

    1.349 standard deviations lie between a normal law's quartiles, and its median spreads by 1.253
    times as much as its mean.
    """
    low, _, high = quantiles(samples, n=4)
    return 1.96 * 1.253 * (high - low) / 1.349 / math.sqrt(len(samples))
