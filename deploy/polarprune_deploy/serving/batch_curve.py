"""How long a batch takes by its size, measured on the engine that serves it."""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

REPEATS = 5
LONGEST_SECONDS = 0.25
"""Nobody waits for a batch that takes longer, unless one image does."""
WORTH = 0.03
"""A larger batch that makes an image cheaper by less is not worth its wait."""
NEARLY = 0.95


@dataclass(frozen=True)
class BatchCurve:
    """Measured points, in order of size.

    Attributes:
        sizes: images in a batch.
        seconds: what one run took, the fastest of a few: on a busy machine (a model that is
            replaced under load) the others say more about the neighbours. It never falls.
        filled_up: whether batches of sizes in between are filled up to the next point's.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    filled_up: bool = False

    def seconds_for(self, rows: int) -> float:
        """What a batch takes: on straight lines between the points, and beyond the last.

        >>> curve = BatchCurve((1, 2, 4), (1.0, 1.5, 2.5))
        >>> curve.seconds_for(1), curve.seconds_for(3), curve.seconds_for(8)
        (1.0, 2.0, 4.5)
        >>> BatchCurve((1, 2, 4), (1.0, 1.5, 2.5), filled_up=True).seconds_for(3)
        2.5
        """
        sizes, seconds = self.sizes, self.seconds
        if rows <= sizes[0] or len(sizes) == 1:
            return seconds[0] * max(1.0, rows / sizes[0])
        right = min(bisect_left(sizes, rows), len(sizes) - 1)
        if sizes[right] == rows or (self.filled_up and rows < sizes[right]):
            return seconds[right]
        left = right - 1
        slope = (seconds[right] - seconds[left]) / (sizes[right] - sizes[left])
        return seconds[left] + (rows - sizes[left]) * slope

    def throughput(self, size: int) -> float:
        """Images a second in batches of this size, one behind the other."""
        return size / self.seconds_for(size)

    @property
    def best_size(self) -> int:
        """The smallest measured size that reaches nearly the best throughput."""
        best = max(self.throughput(size) for size in self.sizes)
        return next(size for size in self.sizes if self.throughput(size) >= NEARLY * best)

    @property
    def window_seconds(self) -> float:
        """How long an idle engine may wait for company.

        A quarter of what one image takes, times the share of it that company saves: nothing where
        a batch of n takes n times as long. Source: ours.
        """
        alone = self.seconds_for(1)
        together = 1 / self.throughput(self.best_size)
        return 0.25 * alone * max(0.0, 1 - together / alone)


def measure_curve(
    run: Callable[[int], None],
    sizes: Sequence[int],
    clock: Callable[[], float] = time.perf_counter,
    *,
    filled_up: bool = False,
) -> BatchCurve:
    """Run batches of growing size until a larger one no longer pays.

    Args:
        run: computes one batch of so many images.
        sizes: those that the engine takes, growing.
        clock: seconds.
        filled_up: whether the engine fills up what lies in between.
    """
    measured: list[int] = []
    seconds: list[float] = []
    not_worth = 0
    for size in sizes:
        run(size)  # the first one allocates
        times = []
        for _ in range(REPEATS):
            start = clock()
            run(size)
            times.append(clock() - start)
            if sum(times) > LONGEST_SECONDS:
                break
        measured.append(size)
        seconds.append(max(min(times), 1e-9))
        if len(measured) > 1:
            before, now = seconds[-2] / measured[-2], seconds[-1] / size
            not_worth = not_worth + 1 if now > before * (1 - WORTH) else 0
        if not_worth == 2 or seconds[-1] > LONGEST_SECONDS:
            break
    # What is slower than a larger batch was disturbed: a disturbance only ever adds time.
    seconds = list(accumulate(reversed(seconds), min))[::-1]
    return BatchCurve(tuple(measured), tuple(seconds), filled_up)
