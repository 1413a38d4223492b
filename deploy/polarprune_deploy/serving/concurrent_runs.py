"""Whether batches are better computed side by side, each on one core, than one on all cores.

The layers of a small network are too small to share: cores wait for each other at the end of each.
What is alone still gets them all, so that nobody waits longer than before.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from polarprune_deploy.serving.batch_curve import BatchCurve, measure_curve

WORTH = 1.1
"""Images a second, over those of one batch at a time; below it a second session only costs memory.
"""
LONGEST_SECONDS = 0.02
"""Of a run of one image, on all cores: a longer one has layers that are large enough to share, and
would take long to measure."""
TURNS = 4
"""Batches that each thread computes between two looks at the clock: to wait for the slowest thread
is not part of the work."""


def measure_side_by_side(
    run: Callable[[int], None], sizes: Sequence[int], threads: int, together: BatchCurve
) -> BatchCurve | None:
    """What a batch takes while each of so many threads computes one; None where it is not worth it.

    Source: ours.

    Args:
        run: computes one batch of so many images; called from all threads at once.
        sizes: those that the engine takes, growing.
        threads: at a time, at least 2.
        together: of one batch at a time, on all cores.
    """
    with ThreadPoolExecutor(threads) as pool:

        def turns(size: int) -> None:
            for _ in range(TURNS):
                run(size)

        def run_all(size: int) -> None:
            for done in [pool.submit(turns, size) for _ in range(threads)]:
                done.result()

        curve = measure_curve(run_all, sizes, lambda: time.perf_counter() / TURNS)
    best, before = curve.best_size, together.best_size
    gained = threads * curve.throughput(best) / together.throughput(before)
    return curve if gained >= WORTH else None
