"""Is the candidate faster? Paired ratios, their interval, and the rule that makes a verdict.

The sample is one *round*: in it every network is timed once, in random order, so what the machine
does to one it does to the others and the ratio of a pair is free of it. Calls inside a round are
correlated and are never counted as samples. The figure is the median of the paired log ratios, the
interval is the distribution-free one for a median: it assumes only that rounds are independent and
share one median, so outliers need not be trimmed and no shape is fitted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polarprune.errors import ConfigError

Verdict = Literal["faster", "slower", "no_difference_shown", "inconclusive"]

FAMILY_CONFIDENCE = 0.95
"""Probability that *every* interval of one family holds its true ratio."""

CONTROL_CONFIDENCE = 0.99
"""The same for the A/A controls: a false alarm voids a sound measurement, so it must be rarer."""

BROKEN_CONTROL = 0.025
"""From here on a measurement is unstable: trtexec's own threshold for saying so."""

# Floors of MLPerf LoadGen's early stopping (mlcommons/endpoints, pull request 417); the median only
# needs enough samples for a 95 % interval of its own: 1 - 2 ** (1 - 6) is the first above 0.95.
PERCENTILE_FLOORS = {50: 6, 90: 64, 99: 662}


@dataclass(frozen=True)
class RatioInterval:
    """A speedup (time of the first over time of the second) with its interval over rounds."""

    speedup: float
    ci_low: float
    ci_high: float
    confidence: float
    rounds: int

    @property
    def excludes_one(self) -> bool:
        """Whether the interval shows a difference at its confidence."""
        return self.ci_low > 1.0 or self.ci_high < 1.0

    def as_json(self) -> dict[str, float]:
        """The three numbers of the `control` object of `bench --json`."""
        return {"speedup": self.speedup, "ci_low": self.ci_low, "ci_high": self.ci_high}


@dataclass(frozen=True)
class Percentile:
    """An order statistic with its own distribution-free interval and the number of samples."""

    percent: int
    value: float
    low: float
    high: float
    samples: int

    def as_json(self) -> dict[str, float]:
        """The three numbers of a `percentiles` object of `bench --json`."""
        return {"value": self.value, "low": self.low, "high": self.high}


def corrected_confidence(family: int, confidence: float = FAMILY_CONFIDENCE) -> float:
    """Confidence for each of `family` intervals so that all hold together with `confidence`.

    Bonferroni's: no assumption on how the intervals depend on each other.

    >>> round(corrected_confidence(5), 4)
    0.99
    """
    if family < 1:
        raise ConfigError(f"a family has at least one verdict, got {family}")
    return 1.0 - (1.0 - confidence) / family


def paired_ratio(
    numerator_times: ArrayLike, denominator_times: ArrayLike, *, confidence: float
) -> RatioInterval:
    """How many times faster the second network is than the first.

    Args:
        numerator_times: one time a round, of the network compared against; any unit.
        denominator_times: the candidate's times in the same rounds, in the same unit.
        confidence: probability that the interval holds the true ratio.

    Raises:
        ConfigError: times that do not pair up or are not positive, or too few rounds.
    """
    first = np.asarray(numerator_times, dtype=np.float64)
    second = np.asarray(denominator_times, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ConfigError(f"paired times must be two equal rows, got {first.shape}, {second.shape}")
    if not (
        np.all(np.isfinite(first) & (first > 0)) and np.all(np.isfinite(second) & (second > 0))
    ):
        raise ConfigError("a paired time is not a positive number: the clock did not advance")
    log_ratios = np.log(first) - np.log(second)
    low, high = median_interval(log_ratios, confidence=confidence)
    return RatioInterval(
        speedup=math.exp(float(np.median(log_ratios))),
        ci_low=math.exp(float(low)),
        ci_high=math.exp(float(high)),
        confidence=confidence,
        rounds=first.size,
    )


def median_interval(
    samples: ArrayLike, *, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interval for the median along the last axis, interpolated between two order statistics.

    The interval between the d-th smallest and d-th largest of n samples holds the median with
    probability 1 - 2 P(Binomial(n, 1/2) < d) whatever the distribution. The two neighbours of the
    wanted confidence are interpolated as Hettmansperger and Sheather (1986) do, which is close to
    exact for any unimodal distribution and spares the jump to the next wider pair.

    Raises:
        ConfigError: so few samples that even the widest pair falls short of the confidence.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64), axis=-1)
    n = ordered.shape[-1]
    below = _binomial_cdf_at_half(n)
    coverages = [1.0 - 2.0 * below[d - 1] for d in range(1, n // 2 + 1)]
    if not 0.0 < confidence < 1.0 or not coverages or coverages[0] < confidence:
        raise ConfigError(
            f"{n} rounds cannot give a {confidence:.6g} interval of the median; time more rounds"
        )
    d = max(index + 1 for index, coverage in enumerate(coverages) if coverage >= confidence)
    next_coverage = coverages[d] if d < len(coverages) else 0.0
    share = (coverages[d - 1] - confidence) / (coverages[d - 1] - next_coverage)
    weight = (n - d) * share / (d + (n - 2 * d) * share)
    low = (1.0 - weight) * ordered[..., d - 1] + weight * ordered[..., d]
    high = (1.0 - weight) * ordered[..., n - d] + weight * ordered[..., n - d - 1]
    return low, high


def _binomial_cdf_at_half(n: int) -> list[float]:
    """P(Binomial(n, 1/2) <= k) for k = 0 .. n."""
    total = 0
    below = []
    for k in range(n + 1):
        total += math.comb(n, k)
        below.append(total / 2**n)
    return below


def decide(effect: RatioInterval, control: RatioInterval) -> tuple[Verdict, str]:
    """The verdict on one comparison and the reason for it, one line.

    Two loads of one network are never quite equally fast: where their memory lies is enough. What
    the control shows of that, the farther end of its interval, widens the effect's interval on both
    sides before it is asked whether it excludes 1. A control that is surely off by more than
    `BROKEN_CONTROL` is a measurement gone wrong, and says nothing.

    Args:
        effect: the network compared against, over the candidate.
        control: the candidate over a second load of the same candidate, in the same rounds.

    Source: rules 5 and 6 of our measuring practice: an A/A control that shows a difference, or is
    wider than the effect it stands beside, speaks against the measurement and not for the network.
    """
    low, high = math.log(control.ci_low), math.log(control.ci_high)
    if max(low, -high) > math.log1p(BROKEN_CONTROL):
        return "inconclusive", (
            f"the control failed: the candidate against itself gave {control.speedup:.3f} "
            f"[{control.ci_low:.3f}, {control.ci_high:.3f}]"
        )
    if not effect.excludes_one:
        return "no_difference_shown", "the interval holds 1"
    if high - low > abs(math.log(effect.speedup)):
        return "inconclusive", (
            f"the control's interval [{control.ci_low:.3f}, {control.ci_high:.3f}] is wider than "
            f"the effect {effect.speedup:.3f}"
        )
    bias = max(-low, high)
    shown = f"{100 * math.expm1(bias):.1f} %"
    if -bias <= math.log(effect.ci_low) <= bias or -bias <= math.log(effect.ci_high) <= bias:
        return "inconclusive", (
            f"the interval excludes 1, but not when widened by the {shown} by which two loads of "
            "one network may differ here"
        )
    side = "above" if effect.ci_low > 1.0 else "below"
    control_words = (
        f"also when widened by the {shown} that the control shows"
        if control.excludes_one
        else "and the control holds 1"
    )
    return "faster" if side == "above" else "slower", f"the interval lies {side} 1 {control_words}"


def percentile(samples: Sequence[float], percent: int) -> Percentile:
    """An order statistic of all samples, none trimmed, with a 95 % interval.

    Raises:
        ConfigError: a percentile without a stated floor, or fewer samples than that floor.
    """
    if percent not in PERCENTILE_FLOORS:
        raise ConfigError(f"percentiles are {sorted(PERCENTILE_FLOORS)}, got {percent}")
    n, floor = len(samples), PERCENTILE_FLOORS[percent]
    if n < floor:
        raise ConfigError(f"p{percent} needs at least {floor} samples, got {n}; time more")
    ordered = sorted(samples)
    share = percent / 100.0
    low, high = _order_statistics(n, share)
    return Percentile(
        percent=percent,
        value=ordered[-(-percent * n // 100) - 1],  # whole numbers: 0.9 * 70 exceeds 63
        low=ordered[low],
        high=ordered[high],
        samples=n,
    )


def allowed_percentiles(samples: Sequence[float]) -> list[Percentile]:
    """Those percentiles that so many samples allow."""
    return [
        percentile(samples, percent)
        for percent, floor in PERCENTILE_FLOORS.items()
        if len(samples) >= floor
    ]


def _order_statistics(n: int, share: float) -> tuple[int, int]:
    """Positions between which the quantile lies with at least 95 %, each tail at most 2.5 %.

    Where the samples end before the tail does, the bound is the extreme itself.
    """
    tail = 0.025
    # Ten standard deviations below the mean there is nothing that would add to the tail.
    start = max(0, int(n * share - 10.0 * math.sqrt(n * share * (1.0 - share))))
    below, low = 0.0, start
    for k in range(start, n):
        # In logarithms: a coefficient of a thousand samples does not fit a float.
        log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        below += math.exp(log_choose + k * math.log(share) + (n - k) * math.log1p(-share))
        if below <= tail:
            low = k
        if below >= 1.0 - tail:
            return low, k
    return low, n - 1
