"""Cold runs are preceded by an eviction that is not timed; the size follows the caches."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from polarprune.errors import ConfigError
from polarprune_deploy import cache_regimes
from polarprune_deploy.cache_regimes import CpuEviction, eviction_for, last_cache_bytes
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.latency import compare_latency

Make = Callable[..., object]
Compare = Callable[..., Comparison]


@dataclass
class SlowEviction:
    """Takes 40 ms of the device's clock; a run that follows it takes 2 ms more."""

    device: object
    written: int = 1000
    queued: int = 0
    evicted: int = 0

    def before(self, call: object) -> None:
        self.evicted += 1
        self.device.spend(40.0)  # type: ignore[attr-defined]

    def enqueue(self, call: object) -> None:
        self.queued += 1
        self.device.spend(40.0)  # type: ignore[attr-defined]


def test_each_cold_run_is_preceded_by_an_eviction_that_is_not_timed(
    make_device: Make, make_gpu_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(1, noise=0.01)
    evict = SlowEviction(device)
    got = virtual_comparison(
        make_gpu_runner(device, 4.0), make_gpu_runner(device, 2.0), cache="cold",
        eviction=lambda cache, where: evict,
    )  # fmt: skip
    runs = sum(sample.repetitions for sample in got.samples)
    assert evict.evicted == runs + 2  # two tell beforehand what an eviction takes
    assert evict.queued == runs
    assert (got.against_ms, got.ms) == pytest.approx((7.1, 5.1), rel=0.02)
    assert got.device_time is not None
    assert got.device_time.ms == pytest.approx(2.0, rel=0.02)
    for sample in got.samples:
        assert sample.cache == "cold"
        assert sample.run_ns is not None
        assert sum(sample.run_ns) == sample.elapsed_ns
    assert got.row()["cache"] == "cold"
    assert got.conclusions()["evicted_bytes"] == 1000
    assert "cold caches" in got.label


def test_warm_runs_are_preceded_by_none(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(2)
    got = virtual_comparison(make_runner(device, 4.0), make_runner(device, 2.0))
    assert {sample.cache for sample in got.samples} == {"warm"}
    assert {sample.run_ns for sample in got.samples} == {None}
    assert got.evicted_bytes == 0
    assert "warm caches" in got.label


def test_the_largest_cache_that_the_kernel_lists_counts(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "2048K", "36M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_cache_bytes(tmp_path) == 36 << 20


@pytest.mark.parametrize(
    ("cache", "written"), [("36M", (72 << 20) + 1), ("491520K", 256 << 20), (None, (64 << 20) + 1)]
)
def test_a_buffer_is_twice_the_last_cache_and_bounded(
    cache: str | None, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_regimes, "CPU_CACHES", tmp_path)
    if cache is not None:
        (tmp_path / "index3").mkdir()
        (tmp_path / "index3" / "size").write_text(cache)
    evict = eviction_for("cold", "cpu")
    assert evict is not None
    assert evict.written == written


def test_an_eviction_writes_every_byte_anew() -> None:
    evict = CpuEviction(np.zeros(1000, np.uint8))
    for value in (1, 2):
        evict.before(lambda: None)  # type: ignore[arg-type]
        assert np.all(evict.buffer == value)


def test_other_regimes_are_refused(make_device: Make, make_runner: Make) -> None:
    device = make_device(3)
    with pytest.raises(ConfigError, match="cache must be one of warm, cold, got 'tepid'"):
        compare_latency([make_runner(device, 1.0)] * 2, batch=1, cache="tepid")
