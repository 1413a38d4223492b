"""A batcher that costs nothing: what the server's tail is held against.

It starts the moment the engine is free with all that wait, up to its batch size; its runs take what
runs of that size took in the bare loop, drawn anew each time.
"""

from collections import deque
from collections.abc import Mapping, Sequence

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
