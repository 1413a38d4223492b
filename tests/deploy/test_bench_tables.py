"""What people read: one table, the words they use, and a reason for each verdict."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from polarprune_deploy.bench_tables import bench_tables
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.repeated_builds import combine_builds

Make = Callable[..., object]
Compare = Callable[..., Comparison]


def words(*comparisons: Comparison) -> str:
    console = Console(width=160, highlight=False)
    with console.capture() as capture:
        console.print(*bench_tables(comparisons), sep="\n")
    return capture.get()


@pytest.fixture
def compare(make_device: Make, make_gpu_runner: Make, virtual_comparison: Compare) -> Compare:
    def make(candidate_ms: float = 2.0, **options: object) -> Comparison:
        device = make_device(1, noise=0.01)
        runners = (
            make_gpu_runner(device, 4.0, name="base"),
            make_gpu_runner(device, candidate_ms, name="run (pruned)"),
        )
        return virtual_comparison(*runners, **options)

    return make


def test_each_quantity_is_a_labelled_line_and_each_verdict_has_its_reason(compare: Compare) -> None:
    got = words(compare(batch=8), compare(4.0, batch=1))
    assert "run (pruned) against base" in got
    lines = got.splitlines()
    assert sum("host latency" in line and " ms " in line for line in lines) == 2
    assert sum("device time" in line and " ms " in line for line in lines) == 2
    assert "Batch 8: " in got
    assert "faster: the interval lies above 1" in got
    assert "no difference shown" in got
    assert "no_difference_shown" not in got
    assert "images/s" in got
    assert "warm caches, 40 paired rounds" in got


def test_medians_that_point_the_other_way_than_the_ratio_are_explained(compare: Compare) -> None:
    one = compare()
    assert one.effect.speedup > 1
    assert "point the other way" not in words(one)
    got = words(replace(one, ms=one.against_ms * 1.01))
    assert "point the other way than its ratio: the times are medians of each side" in got


def test_what_differs_from_the_usual_is_said(compare: Compare) -> None:
    cold = replace(compare(), cache="cold", evicted_bytes=256 << 20, against_precision="fp16")
    got = words(combine_builds([cold, cold]))
    assert "fp32 against fp16" in got
    assert "cold caches (256 MiB written before each run)" in got
    assert "2 builds" in got
    single = words(compare(scenario="single_stream"))
    assert "p99" in single
    assert "in the style of MLPerf's single stream" in single
