"""Several builds: the median, all intervals, and a verdict only where they agree."""

from collections.abc import Callable
from statistics import median

import pytest

from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.repeated_builds import combine_builds

Make = Callable[..., object]
Compare = Callable[..., Comparison]


@pytest.fixture
def build(make_device: Make, make_gpu_runner: Make, virtual_comparison: Compare) -> Compare:
    def make(seed: int, against: float, candidate: float) -> Comparison:
        device = make_device(seed, noise=0.01)
        runners = make_gpu_runner(device, against), make_gpu_runner(device, candidate)
        return virtual_comparison(*runners, seed=seed, family=3)

    return make


def test_builds_that_agree_give_the_median_and_the_widest_interval(build: Compare) -> None:
    builds = [build(seed, 8.0, cost) for seed, cost in enumerate((5.0, 4.0, 3.0))]
    got = combine_builds(builds)
    assert got.verdict == "faster"
    assert got.effect.speedup == median(one.effect.speedup for one in builds)
    assert got.effect.ci_low == min(one.effect.ci_low for one in builds)
    assert got.effect.ci_high == max(one.effect.ci_high for one in builds)
    assert got.device_time is not None
    assert got.device_time.effect.speedup == pytest.approx(2.0, rel=0.02)
    row = got.row()
    assert [one["speedup"] for one in row["builds"]] == [one.effect.speedup for one in builds]
    assert all("device_time" in one for one in row["builds"])
    assert len(got.samples) == 3 * 120
    assert [sum(s.build == number for s in got.samples) for number in range(3)] == [120] * 3


def test_builds_that_disagree_are_inconclusive_and_say_how_far(build: Compare) -> None:
    builds = [build(1, 8.0, 5.0), build(2, 8.0, 8.0)]
    got = combine_builds(builds)
    assert got.verdict == "inconclusive"
    low, high = sorted(one.effect.speedup for one in builds)
    assert got.reason == f"builds differ: {low:.2f} to {high:.2f}"


def test_one_build_is_itself(build: Compare) -> None:
    only = build(3, 8.0, 5.0)
    assert combine_builds([only]) is only
    assert "builds" not in only.row()
