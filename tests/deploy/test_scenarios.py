"""Single stream: every run by itself, percentiles only with enough of them."""

from collections.abc import Callable

import numpy as np
import pytest

from polarprune.errors import ConfigError, Refused
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.timing import BlockPlan, calibrate

Make = Callable[..., object]
Compare = Callable[..., Comparison]


def test_single_stream_times_each_run_and_has_the_percentiles_of_all(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(1, outlier_share=0.02)
    runners = make_runner(device, 6.0), make_runner(device, 5.0)
    got = virtual_comparison(*runners, scenario="single_stream")
    for side, role in (("against", "against"), ("candidate", "candidate")):
        runs = [ns for s in got.samples if s.network == role for ns in s.run_ns or ()]
        assert len(runs) >= 662
        found = got.row()["percentiles"][side]
        assert found["n"] == len(runs)
        for percent in (50, 90, 99):
            expected = np.percentile(runs, percent, method="inverted_cdf") / 1e6
            figures = found[f"p{percent}_ms"]
            assert figures["value"] == pytest.approx(expected)
            assert figures["low"] <= figures["value"] <= figures["high"]


def test_too_few_runs_have_no_high_percentile(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(2)
    runners = make_runner(device, 60.0), make_runner(device, 50.0)
    got = virtual_comparison(*runners, scenario="single_stream", max_seconds=20.0)
    found = got.row()["percentiles"]["candidate"]
    assert 64 <= found["n"] < 662
    assert set(found) == {"n", "p50_ms", "p90_ms"}


def test_offline_has_images_a_second_and_no_percentiles(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(3)
    got = virtual_comparison(make_runner(device, 8.0), make_runner(device, 4.0), batch=16)
    row = got.row()
    assert row["images_per_second"] == pytest.approx(4000, rel=0.02)
    assert row["against_images_per_second"] == pytest.approx(2000, rel=0.02)
    assert "percentiles" not in row


def test_single_stream_is_of_single_images(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(4)
    runners = make_runner(device, 8.0), make_runner(device, 4.0)
    with pytest.raises(ConfigError, match="one image at a time, got --batch 8; give 1"):
        virtual_comparison(*runners, batch=8, scenario="single_stream")


def test_precisions_are_compared_only_where_that_is_asked_for(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(5)
    runners = make_runner(device, 8.0), make_runner(device, 4.0, precision="fp16")
    with pytest.raises(ConfigError, match=r"same precision .* --across-precisions compares"):
        virtual_comparison(*runners)
    row = virtual_comparison(*runners, across_precisions=True).row()
    assert (row["precision"], row["against_precision"]) == ("fp16", "fp32")


def test_a_plan_pays_for_evictions_and_device_blocks() -> None:
    assert calibrate([1.0] * 3, 40, 600.0, apart=17) == BlockPlan(1, 17, apart=True)
    # 10 ms of block are one run of 1 ms behind 50 ms of eviction.
    assert calibrate([1.0] * 3, 40, 600.0, evict_ms=50.0) == BlockPlan(0, 1, apart=True)
    with pytest.raises(Refused, match="40 rounds would take 6 s, over the 5 s allowed"):
        calibrate([1.0] * 3, 40, 5.0, evict_ms=50.0)
    assert calibrate([1.0] * 3, 40, 0.6, blocks=1).timed == 4
    assert calibrate([1.0] * 3, 40, 0.6, blocks=2).timed == 2
