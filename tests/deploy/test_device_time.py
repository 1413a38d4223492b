"""Host latency and device time, on a virtual clock: two quantities with two truths."""

from collections.abc import Callable

import pytest

from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.gpu_state import GpuReport, GpuState

Make = Callable[..., object]
Compare = Callable[..., Comparison]


def test_host_latency_and_device_time_each_recover_their_own_ratio(
    make_device: Make, make_gpu_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(1, noise=0.01)
    got = virtual_comparison(make_gpu_runner(device, 4.0), make_gpu_runner(device, 2.0))
    on_device = got.device_time
    assert on_device is not None
    assert got.effect.speedup == pytest.approx(7.1 / 5.1, rel=0.01)
    assert on_device.effect.speedup == pytest.approx(2.0, rel=0.01)
    assert (got.against_ms, got.ms) == pytest.approx((7.1, 5.1), rel=0.02)
    assert (on_device.against_ms, on_device.ms) == pytest.approx((4.0, 2.0), rel=0.02)
    assert on_device.enqueue_ms == pytest.approx(0.1, rel=0.05)
    assert (got.verdict, on_device.verdict) == ("faster", "faster")


def test_each_quantity_counts_in_the_family(
    make_device: Make, make_gpu_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(2)
    runners = make_gpu_runner(device, 4.0), make_gpu_runner(device, 2.0)
    got = virtual_comparison(*runners, family=3)
    assert got.device_time is not None
    assert got.effect.confidence == pytest.approx(1 - 0.05 / 6)
    assert got.device_time.effect.confidence == got.effect.confidence


def test_a_row_nests_device_time_and_the_raw_samples_give_it_again(
    make_device: Make, make_gpu_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(3)
    got = virtual_comparison(make_gpu_runner(device, 4.0), make_gpu_runner(device, 2.0))
    row = got.row()
    assert row["ms"] == got.ms
    assert set(row["device_time"]) == {
        "against_ms", "ms", "speedup", "ci_low", "ci_high", "verdict", "reason", "control",
        "against_enqueue_ms", "enqueue_ms",
    }  # fmt: skip
    for sample in got.samples:
        assert sample.device_ns is not None
        assert len(sample.device_ns) == sample.repetitions
        assert sample.enqueue_ns is not None
    times = sorted(s.device_ms for s in got.samples if s.network == "candidate")
    assert row["device_time"]["ms"] == pytest.approx((times[19] + times[20]) / 2)


def test_without_a_device_clock_there_is_no_device_time(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(4)
    got = virtual_comparison(make_runner(device, 4.0), make_runner(device, 2.0))
    assert got.device_time is None
    assert "device_time" not in got.row()
    assert got.effect.confidence == pytest.approx(0.95)


class Watcher:
    """A GPU whose SM clock and reasons are given, look by look; the last repeats."""

    def __init__(self, looks: list[GpuState]) -> None:
        self._looks = looks
        self.count = 0

    def look(self) -> GpuState:
        state = self._looks[min(self.count, len(self._looks) - 1)]
        self.count += 1
        return state

    def report(self, before: GpuState, during: list[GpuState]) -> GpuReport:
        return GpuReport("virtual", "uuid", "1", (1, 2), before, tuple(during), self.look())


def at(mhz: int, *reasons: str) -> GpuState:
    return GpuState(mhz, 2600, 50, 300.0, reasons)


@pytest.mark.parametrize(
    ("looks", "reason"),
    [
        ([at(1980)], None),
        ([at(1980, "application clocks")], None),
        ([at(1980)] * 20 + [at(1950)], None),
        ([at(1980)] * 20 + [at(1930)], "the SM clock moved from 1930 to 1980 MHz"),
        ([at(1980)] * 20 + [at(1980, "power cap")] + [at(1980)], "held its clock back (power cap)"),
    ],
)
def test_a_gpu_that_does_not_keep_its_clock_makes_both_quantities_inconclusive(
    looks: list[GpuState],
    reason: str | None,
    make_device: Make,
    make_gpu_runner: Make,
    virtual_comparison: Compare,
) -> None:
    device = make_device(5)
    watcher = Watcher(looks)
    runners = make_gpu_runner(device, 4.0), make_gpu_runner(device, 2.0)
    got = virtual_comparison(*runners, monitor=lambda where: watcher)
    assert got.device_time is not None
    assert got.gpu is not None
    assert len(got.gpu.during) == 40
    if reason is None:
        assert (got.verdict, got.device_time.verdict) == ("faster", "faster")
        return
    assert (got.verdict, got.device_time.verdict) == ("inconclusive", "inconclusive")
    assert reason in got.reason
    assert "throttled" in got.device_time.reason


def test_warm_up_lasts_until_the_clock_has_left_idle(
    make_device: Make, make_gpu_runner: Make, virtual_comparison: Compare
) -> None:
    def runs(idle_looks: int) -> int:
        device = make_device(6)
        watcher = Watcher([at(1980, "idle")] * idle_looks + [at(1980)])
        runners = make_gpu_runner(device, 4.0), make_gpu_runner(device, 2.0)
        got = virtual_comparison(*runners, monitor=lambda where: watcher)
        assert all(warm_up.stable for warm_up in got.warm_ups)
        return got.warm_ups[0].runs

    assert runs(8) > runs(1) + 50  # a window is ten runs
