"""When requests arrive in an open loop: drawn beforehand, whatever the server does."""

import numpy as np
from numpy.typing import NDArray

from polarprune.errors import ConfigError

LARGEST_LOAD = 5_000_000
"""Requests of one row."""


def poisson_arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Arrival times in [0, seconds), with independent exponential gaps.

    Args:
        rate: requests a second, on average.
        seconds: how long.
        seed: decides all gaps.

    Raises:
        ConfigError: more requests than one row may have.

    >>> poisson_arrivals(2.0, 1.5, seed=2).round(3).tolist()
    [0.065, 0.174, 0.431, 0.785, 1.391]
    """
    expected = rate * seconds
    if expected > LARGEST_LOAD:
        raise ConfigError(
            f"{rate:g} requests a second for {seconds:g} s are more than {LARGEST_LOAD:,} "
            "requests; use a lower --rate or fewer --seconds"
        )
    generator = np.random.default_rng(seed)
    # So many gaps that falling short is a matter of ten standard deviations; then some more.
    arrivals = np.zeros(1)
    while arrivals[-1] < seconds:
        gaps = generator.exponential(1.0 / rate, int(expected + 10.0 * expected**0.5) + 10)
        arrivals = np.concatenate([arrivals, arrivals[-1] + np.cumsum(gaps)])
    arrivals = arrivals[1:]
    return arrivals[arrivals < seconds]
