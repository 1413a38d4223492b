"""A batcher that costs nothing: what the server's tail is held against.

It starts the moment the engine is free with all that wait, up to its batch size. Simulated, its
runs take what runs of that size took in the bare loop, drawn anew each time. That leaves out that
slow runs come together (on a shared machine all of it is slow for a while, and a queue grows), so
that it is also run for real: the arrivals by the clock, the runs by the session.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def ideal_latencies(
    arrivals: Sequence[float], runs: Mapping[int, Sequence[float]], size: int, seed: int
) -> list[float]:
    """Seconds from arrival to result, for each arrival.

    Args:
        arrivals: seconds, ascending.
        runs: measured seconds of runs, by batch size, for every size up to `size`.
        size: images to a batch at most.
        seed: decides the draws.

    >>> ideal_latencies([0.0, 0.1, 0.2], {1: [1.0], 2: [1.5]}, 2, seed=0)
    [1.0, 2.4, 2.3]
    """
    generator = np.random.default_rng(seed)
    waiting: deque[float] = deque()
    latencies: list[float] = []
    free, following = 0.0, 0
    while following < len(arrivals) or waiting:
        if not waiting:
            free = max(free, arrivals[following])
        while following < len(arrivals) and arrivals[following] <= free:
            waiting.append(arrivals[following])
            following += 1
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        times = runs[len(batch)]
        free += times[int(generator.integers(len(times)))]
        latencies += [free - arrival for arrival in batch]
    return latencies


def real_latencies(
    arrivals: Sequence[float],
    run: Callable[[int], None],
    size: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[float]:
    """Seconds from arrival to result, for each arrival, in as much time as they take.

    Args:
        arrivals: seconds, ascending.
        run: computes a batch of so many images.
        size: images to a batch at most.
        clock, sleep: of the time that passes.

    >>> now = [0.0]
    >>> def pass_(seconds): now[0] += seconds
    >>> found = real_latencies([0.0, 1.0, 2.0], lambda n: pass_(10.0 + n), 2, lambda: now[0], pass_)
    >>> found
    [11.0, 22.0, 21.0]
    """
    start = clock()
    latencies: list[float] = []
    following = 0
    while following < len(arrivals):
        wait = arrivals[following] - (clock() - start)
        if wait > 0:
            sleep(wait)
            continue
        elapsed = clock() - start
        batch = 1
        while (
            batch < size
            and following + batch < len(arrivals)
            and arrivals[following + batch] <= elapsed
        ):
            batch += 1
        run(batch)
        done = clock() - start
        latencies += [done - arrival for arrival in arrivals[following : following + batch]]
        following += batch
    return latencies
