"""Poisson arrivals: the asked rate, exponential gaps, the same for the same seed."""

import numpy as np
import pytest

from polarprune.errors import ConfigError
from polarprune_deploy.load.schedule import poisson_arrivals


def test_the_gaps_are_exponential_and_independent() -> None:
    arrivals = poisson_arrivals(rate=200.0, seconds=50.0, seed=3)
    gaps = np.diff(arrivals, prepend=0.0)
    # The law of the gaps, from its definition: P(gap <= t) = 1 - exp(-rate t).
    law = 1.0 - np.exp(-200.0 * np.sort(gaps))
    steps = np.arange(1, len(gaps) + 1) / len(gaps)
    distance = np.max(np.abs(steps - law))
    assert distance < 1.63 / np.sqrt(len(gaps))  # Kolmogorov's bound at 1 %; the seed is fixed
    neighbours = np.corrcoef(gaps[:-1], gaps[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(len(gaps))


def test_counts_in_windows_have_the_mean_and_variance_of_the_rate() -> None:
    arrivals = poisson_arrivals(rate=500.0, seconds=100.0, seed=1)
    counts, _ = np.histogram(arrivals, 1000, (0.0, 100.0))
    assert np.mean(counts) == pytest.approx(50.0, rel=0.02)
    assert np.var(counts) == pytest.approx(50.0, rel=0.2)


def test_arrivals_ascend_inside_of_the_time_and_follow_the_seed() -> None:
    arrivals = poisson_arrivals(30.0, 2.0, seed=5)
    assert np.all(np.diff(arrivals) > 0)
    assert 0 < arrivals[0] < arrivals[-1] < 2.0
    assert np.array_equal(arrivals, poisson_arrivals(30.0, 2.0, seed=5))
    assert not np.array_equal(arrivals[:10], poisson_arrivals(30.0, 2.0, seed=6)[:10])


def test_a_load_without_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 5,000,000 requests; use a lower --rate"):
        poisson_arrivals(1e6, 10.0, seed=0)
