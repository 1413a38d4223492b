"""Intervals against exact tables, coverage against simulation, verdicts case by case."""

import math

import numpy as np
import pytest

from polarprune.errors import ConfigError
from polarprune_deploy.statistics import (
    PERCENTILE_FLOORS,
    RatioInterval,
    corrected_confidence,
    decide,
    median_interval,
    paired_ratio,
    percentile,
)

STUDIES = 500
ROUNDS = 40

NOISES = {
    "normal": lambda g, shape: 0.02 * g.standard_normal(shape),
    "outliers": lambda g, shape: (
        0.02 * g.standard_normal(shape)
        + np.where(g.random(shape) < 0.1, g.choice([-1.5, 1.5], shape), 0.0)
    ),
    "heavy tails": lambda g, shape: 0.02 * g.standard_t(1.5, shape),
    "skewed": lambda g, shape: 0.05 * (g.exponential(size=shape) - math.log(2)),
}


def covered(log_ratios: np.ndarray, confidence: float) -> float:
    """Share of the studies whose interval holds 0, the true median."""
    low, high = median_interval(log_ratios, confidence=confidence)
    return float(np.mean((low <= 0) & (high >= 0)))


@pytest.mark.parametrize("noise", NOISES)
def test_nominal_95_percent_intervals_cover_at_93_to_97_percent(noise: str) -> None:
    studies = NOISES[noise](np.random.default_rng(1), (STUDIES, ROUNDS))
    assert 0.93 <= covered(studies, 0.95) <= 0.97


@pytest.mark.parametrize("noise", NOISES)
def test_corrected_intervals_cover_too(noise: str) -> None:
    studies = NOISES[noise](np.random.default_rng(2), (20_000, ROUNDS))
    assert covered(studies, corrected_confidence(3)) == pytest.approx(1 - 0.05 / 3, abs=0.004)


def test_a_t_interval_with_rare_outliers_is_far_wider() -> None:
    # Why the median: the guard above would pass for the mean too, at many times the width.
    studies = NOISES["outliers"](np.random.default_rng(3), (STUDIES, ROUNDS))
    low, high = median_interval(studies, confidence=0.95)
    t_width = 2 * 2.02 * studies.std(axis=1, ddof=1) / math.sqrt(ROUNDS)
    assert np.median(t_width) > 5 * np.median(high - low)


@pytest.mark.parametrize(
    ("n", "rank", "coverage"),
    [(10, 2, 1 - 2 * 11 / 1024), (8, 1, 1 - 2 / 256), (20, 6, 1 - 2 * 21700 / 2**20)],
)
def test_at_an_attainable_confidence_the_interval_is_a_pair_of_order_statistics(
    n: int, rank: int, coverage: float
) -> None:
    samples = np.random.default_rng(4).permutation(np.arange(1.0, n + 1))
    low, high = median_interval(samples, confidence=coverage)
    assert (low, high) == pytest.approx((rank, n + 1 - rank))


def test_a_higher_confidence_never_narrows_the_interval() -> None:
    samples = np.random.default_rng(5).standard_normal(ROUNDS)
    widths = [np.ptp(median_interval(samples, confidence=c)) for c in np.linspace(0.3, 0.999, 200)]
    assert np.all(np.diff(widths) >= 0)


def test_five_rounds_cannot_carry_a_95_percent_interval() -> None:
    with pytest.raises(ConfigError, match=r"5 rounds cannot give a 0\.95 interval"):
        median_interval(np.arange(5.0), confidence=0.95)


def test_the_paired_ratio_ignores_what_both_sides_share() -> None:
    generator = np.random.default_rng(6)
    shared = np.exp(np.cumsum(generator.standard_normal(ROUNDS)))  # a machine gone wild
    ratio = paired_ratio(3.0 * shared, 2.0 * shared, confidence=0.95)
    assert (ratio.speedup, ratio.ci_low, ratio.ci_high) == pytest.approx((1.5, 1.5, 1.5))


def test_swapping_the_sides_inverts_ratio_and_interval() -> None:
    first, second = np.random.default_rng(7).uniform(1, 2, (2, 41))
    one = paired_ratio(first, second, confidence=0.9)
    other = paired_ratio(second, first, confidence=0.9)
    assert (one.speedup, one.ci_low, one.ci_high) == pytest.approx(
        (1 / other.speedup, 1 / other.ci_high, 1 / other.ci_low)
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [([1.0] * 40, [1.0] * 39), ([1.0] * 40, [0.0] + [1.0] * 39), ([math.nan] * 40, [1.0] * 40)],
    ids=["unpaired", "zero", "nan"],
)
def test_times_that_cannot_be_paired_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"paired times must be two equal rows|not a positive"):
        paired_ratio(first, second, confidence=0.95)


def test_a_family_of_verdicts_errs_together_at_most_5_percent() -> None:
    members, studies = 6, 4000
    samples = np.random.default_rng(8).standard_normal((studies, members, ROUNDS))

    def family_wise_error(confidence: float) -> float:
        low, high = median_interval(samples, confidence=confidence)
        return float(np.mean(np.any((low > 0) | (high < 0), axis=1)))

    assert family_wise_error(corrected_confidence(members)) <= 0.055
    assert family_wise_error(0.95) > 0.2  # what the correction is for


def test_a_family_needs_a_member() -> None:
    with pytest.raises(ConfigError, match="at least one verdict, got 0"):
        corrected_confidence(0)


def interval(low: float, high: float) -> RatioInterval:
    return RatioInterval(math.sqrt(low * high), low, high, 0.95, ROUNDS)


@pytest.mark.parametrize(
    ("effect", "control", "verdict"),
    [
        ((1.7, 1.8), (0.99, 1.01), "faster"),
        ((0.5, 0.6), (0.99, 1.01), "slower"),
        ((0.99, 1.02), (0.99, 1.01), "no_difference_shown"),
        ((1.7, 1.8), (1.03, 1.05), "inconclusive"),
        ((1.7, 1.8), (0.95, 0.97), "inconclusive"),
        ((0.99, 1.02), (1.03, 1.05), "inconclusive"),
        ((1.7, 1.8), (1.01, 1.03), "faster"),  # off, but by far less than the effect
        ((0.5, 0.6), (0.97, 0.99), "slower"),
        ((1.022, 1.06), (1.01, 1.024), "inconclusive"),
        ((0.95, 0.978), (1.01, 1.024), "inconclusive"),
        ((1.025, 1.06), (1.01, 1.024), "faster"),
        ((0.99, 1.02), (1.01, 1.03), "no_difference_shown"),
        ((1.01, 1.03), (0.98, 1.02), "inconclusive"),
        ((0.97, 0.99), (0.98, 1.02), "inconclusive"),
    ],
)
def test_verdicts_follow_effect_and_control(
    effect: tuple[float, float], control: tuple[float, float], verdict: str
) -> None:
    got, reason = decide(interval(*effect), interval(*control))
    assert got == verdict
    assert reason
    assert "\n" not in reason


def test_the_reason_says_what_the_control_has_to_do_with_it() -> None:
    _, plain = decide(interval(1.7, 1.8), interval(0.99, 1.01))
    _, widened = decide(interval(1.7, 1.8), interval(1.003, 1.006))
    _, lost = decide(interval(1.004, 1.02), interval(1.003, 1.006))
    assert plain == "the interval lies above 1 and the control holds 1"
    assert (
        widened == "the interval lies above 1 also when widened by the 0.6 % that the control shows"
    )
    assert "not when widened by the 0.6 %" in lost


@pytest.mark.parametrize("percent", PERCENTILE_FLOORS)
def test_percentiles_refuse_one_sample_less_than_their_floor(percent: int) -> None:
    samples = list(np.random.default_rng(9).exponential(size=PERCENTILE_FLOORS[percent]))
    assert percentile(samples, percent).samples == PERCENTILE_FLOORS[percent]
    with pytest.raises(ConfigError, match=f"p{percent} needs at least"):
        percentile(samples[:-1], percent)


@pytest.mark.parametrize(("percent", "n"), [(50, 7), (50, 40), (90, 70), (90, 64), (99, 700)])
def test_percentiles_agree_with_numpy(percent: int, n: int) -> None:
    samples = list(np.random.default_rng(10).exponential(size=n))
    expected = np.percentile(samples, percent, method="inverted_cdf")
    got = percentile(samples, percent)
    assert got.value == expected
    assert got.low <= got.value <= got.high


@pytest.mark.parametrize(("percent", "n"), [(50, 20), (90, 100), (99, 1000)])
def test_percentile_intervals_cover(percent: int, n: int) -> None:
    generator = np.random.default_rng(11)
    truth = -math.log(1 - percent / 100)
    got = [percentile(list(generator.exponential(size=n)), percent) for _ in range(STUDIES)]
    assert np.mean([one.low <= truth <= one.high for one in got]) >= 0.93
    assert np.median([one.high - one.low for one in got]) < 2 * truth


def test_other_percentiles_are_not_offered() -> None:
    with pytest.raises(ConfigError, match="got 95"):
        percentile([1.0] * 1000, 95)
