"""The harness on a virtual clock: nobody waits, and the truth is known."""

import gc
import math
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import numpy as np
import pytest

from polarprune.errors import ConfigError, ParityError, Refused
from polarprune.manifest import TensorSpec
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.latency import compare_latency
from polarprune_deploy.timing import BlockPlan, calibrate

Make = Callable[..., object]
Compare = Callable[..., Comparison]

STUDIES = 500


def warming(seconds: float) -> float:
    """A machine that slows down by half within two minutes, with a ripple on top."""
    return 1.0 + seconds / 20.0 + 0.2 * math.sin(seconds * 3.0)


def test_interleaving_recovers_a_ratio_that_sequential_timing_misses(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    truth, verdicts, off = 1.25, [], []
    for seed in range(20):
        device = make_device(seed, drift=warming, outlier_share=0.02)
        got = virtual_comparison(make_runner(device, 5.0), make_runner(device, 4.0), seed=seed)
        assert got.effect.speedup == pytest.approx(truth, rel=0.05)
        verdicts.append(got.verdict)

        device = make_device(seed, drift=warming, outlier_share=0.02)
        times: dict[float, list[int]] = {5.0: [], 4.0: []}
        for cost, blocks in times.items():  # first all of one, then all of the other
            for _ in range(40):
                start = device.clock()
                for _ in range(30):
                    device.spend(cost)
                blocks.append(device.clock() - start)
        off.append(median(times[5.0]) / median(times[4.0]))
    # By now the machine is so much slower that the faster network looks slower.
    assert max(off) < 1.0
    assert set(verdicts) <= {"faster", "inconclusive"}
    assert verdicts.count("faster") >= 18


def test_intervals_cover_the_true_ratio_through_drift_and_outliers(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    hits, false_controls = 0, 0
    for seed in range(STUDIES):
        device = make_device(seed, drift=warming, outlier_share=0.02, noise=0.03)
        got = virtual_comparison(make_runner(device, 6.0), make_runner(device, 5.0), seed=seed)
        hits += got.effect.ci_low <= 1.2 <= got.effect.ci_high
        false_controls += got.control.excludes_one
    assert 0.93 <= hits / STUDIES <= 0.97
    assert false_controls / STUDIES <= 0.025  # 1 % wanted; 0.025 is three standard errors above


def test_no_difference_is_claimed_where_there_is_none(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    families, claims = 170, 0
    for seed in range(families):
        device = make_device(seed, drift=warming, outlier_share=0.02)
        runners = make_runner(device, 5.0), make_runner(device, 5.0)
        rows = [
            virtual_comparison(*runners, seed=seed, batch=batch, family=3) for batch in (1, 8, 64)
        ]
        claims += any(row.verdict in ("faster", "slower") for row in rows)
    assert claims / families <= 0.05


@pytest.mark.parametrize("noise", [0.02, 0.005])
def test_loads_that_differ_by_themselves_are_not_taken_for_a_difference(
    noise: float, make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    families, claims, bare = 170, 0, 0
    for seed in range(families):
        device = make_device(seed, drift=warming, outlier_share=0.02, noise=noise)
        # Three loads of one network; that of the candidate happens to lie better in memory.
        against, candidate = (
            make_runner(device, 5.025),
            make_runner(device, 5.0, twin_cost_ms=5.025),
        )
        rows = [
            virtual_comparison(against, candidate, seed=seed, batch=batch, family=3)
            for batch in (1, 8, 64)
        ]
        claims += any(row.verdict in ("faster", "slower") for row in rows)
        bare += any(row.effect.excludes_one for row in rows)
    assert claims / families <= 0.05
    assert bare / families > 0.2  # what the widening is for


def test_a_control_that_is_a_little_off_does_not_void_a_large_effect(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    verdicts, off = [], 0
    for seed in range(20):
        device = make_device(seed, noise=0.005)
        candidate = make_runner(device, 5.0, twin_cost_ms=5.02)
        got = virtual_comparison(make_runner(device, 6.9), candidate, seed=seed)
        verdicts.append(got.verdict)
        off += got.control.excludes_one
    assert off > 10  # or nothing was asked
    assert set(verdicts) == {"faster"}


def test_a_slower_candidate_is_called_slower(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(1)
    got = virtual_comparison(make_runner(device, 4.0), make_runner(device, 5.0))
    assert got.verdict == "slower"
    assert got.effect.ci_low <= 0.8 <= got.effect.ci_high


def test_a_broken_control_is_inconclusive_however_large_the_effect(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(2)
    candidate = make_runner(device, 2.0, twin_cost_ms=2.2)  # 10 %: beyond 2.5 %
    got = virtual_comparison(make_runner(device, 8.0), candidate)
    assert got.verdict == "inconclusive"
    assert "control failed" in got.reason


def test_an_effect_smaller_than_the_controls_interval_is_not_claimed(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    verdicts = set()
    for seed in range(30):
        device = make_device(seed, noise=0.3)
        runners = make_runner(device, 5.1), make_runner(device, 5.0)
        verdicts.add(virtual_comparison(*runners, seed=seed).verdict)
    assert verdicts <= {"no_difference_shown", "inconclusive"}


def test_a_throttled_machine_is_inconclusive(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(3)
    runners = make_runner(device, 8.0), make_runner(device, 2.0)
    assert virtual_comparison(*runners).verdict == "faster"
    # A quota that takes as much as it gives, on however many CPUs this machine has.
    got = virtual_comparison(*runners, stolen=lambda: device.now_ns / 1e9 * 1000)
    assert got.verdict == "inconclusive"
    assert "throttled" in got.reason


def test_every_round_times_everyone_once_in_an_order_of_its_own(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(4)
    got = virtual_comparison(make_runner(device, 5.0), make_runner(device, 4.0), rounds=60)
    orders = set()
    for number in range(60):
        block = sorted((s for s in got.samples if s.round == number), key=lambda s: s.position)
        assert [s.position for s in block] == [0, 1, 2]
        orders.add(tuple(s.network for s in block))
    assert len(got.samples) == 180
    assert len(orders) == 6  # all permutations of three
    assert {len(order) for order in map(set, orders)} == {3}


def test_blocks_are_long_and_equal_in_repetitions(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(5)
    got = virtual_comparison(make_runner(device, 0.2), make_runner(device, 0.01))
    assert len({sample.repetitions for sample in got.samples}) == 1
    assert min(sample.elapsed_ns for sample in got.samples) >= 2_000_000


def test_the_same_seed_gives_the_same_orders_and_another_seed_others(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    def orders(seed: int) -> list[str]:
        device = make_device(6)
        got = virtual_comparison(make_runner(device, 5.0), make_runner(device, 4.0), seed=seed)
        return [sample.network for sample in got.samples]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)


def test_two_candidates_share_the_rounds_and_have_a_control_each(
    make_device: Make, make_runner: Make
) -> None:
    device = make_device(7)
    runners = [make_runner(device, cost) for cost in (6.0, 3.0, 12.0)]
    faster, slower = compare_latency(runners, batch=1, clock=device.clock, stolen=lambda: 0.0)
    assert (faster.verdict, slower.verdict) == ("faster", "slower")
    assert faster.effect.confidence == pytest.approx(0.975)
    assert {sample.network for sample in slower.samples} == {
        "against",
        "candidate_1",
        "control_1",
    }


def test_warm_up_waits_for_a_machine_that_speeds_up(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(8, drift=lambda seconds: 1.0 + 4.0 * math.exp(-seconds / 0.3))
    got = virtual_comparison(make_runner(device, 5.0), make_runner(device, 4.0))
    assert all(warm_up.stable for warm_up in got.warm_ups)
    first = got.warm_ups[0]
    assert first.prepare_ms > 1.5 * first.steady_run_ms
    assert first.steady_run_ms == pytest.approx(5.0, rel=0.3)


def test_warm_up_gives_up_on_a_machine_that_never_settles_and_says_so(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(9, noise=0.8)
    got = virtual_comparison(make_runner(device, 15.0), make_runner(device, 15.0))
    assert not all(warm_up.stable for warm_up in got.warm_ups)


def test_the_timed_part_is_bounded(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    assert calibrate([1.0, 1.0, 1.0], 40, max_seconds=600.0) == BlockPlan(untimed=1, timed=10)
    assert calibrate([1.0, 1.0, 1.0], 40, max_seconds=0.5) == BlockPlan(untimed=1, timed=3)
    assert calibrate([900.0, 70.0], 40, max_seconds=600.0) == BlockPlan(untimed=0, timed=1)
    device = make_device(10)
    runners = make_runner(device, 9000.0), make_runner(device, 9000.0)
    with pytest.raises(Refused, match=r"40 rounds would take 10.. s, over the 600 s allowed"):
        virtual_comparison(*runners)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_output_that_is_not_finite_stops_before_anything_is_timed(
    value: float, make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(11)
    good, bad = make_runner(device, 5.0), make_runner(device, 5.0, output=value)
    with pytest.raises(ParityError, match="not finite"):
        virtual_comparison(good, bad)
    assert (good.runs, bad.runs) == (2, 2)  # one to prepare, one to check


def test_two_loads_that_disagree_stop_before_anything_is_timed(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(12)
    bad = make_runner(device, 5.0, output=1.0, twin_output=1.001)
    with pytest.raises(ParityError, match=r"two loads of virtual differ by 0\.001"):
        virtual_comparison(make_runner(device, 5.0), bad)
    assert bad.runs == 2


@pytest.mark.parametrize(
    "difference",
    [
        {"precision": "fp16"},
        {"backend": "other"},
        {"device": "cuda"},
        {"settings": {"threads": 2}},
        {"inputs": (TensorSpec("input", "float32", (-1, 2)),)},
    ],
    ids=lambda difference: next(iter(difference)),
)
def test_sides_that_differ_in_more_than_the_network_are_refused(
    difference: dict[str, object],
    make_device: Make,
    make_runner: Make,
    virtual_comparison: Compare,
) -> None:
    device = make_device(13)
    with pytest.raises(ConfigError, match=f"must have the same {next(iter(difference))}"):
        virtual_comparison(make_runner(device, 5.0), make_runner(device, 5.0, **difference))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 39}, "--rounds must be at least 40, got 39"),
        ({"batch": 0}, "--batch must be at least 1, got 0"),
    ],
)
def test_requests_out_of_range_are_refused(
    options: dict[str, int],
    message: str,
    make_device: Make,
    make_runner: Make,
    virtual_comparison: Compare,
) -> None:
    device = make_device(14)
    with pytest.raises(ConfigError, match=message):
        virtual_comparison(make_runner(device, 5.0), make_runner(device, 5.0), **options)


def test_one_runner_is_no_comparison(make_device: Make, make_runner: Make) -> None:
    with pytest.raises(ConfigError, match="two runners or more, got 1"):
        compare_latency([make_runner(make_device(15), 1.0)], batch=1)


def test_integer_inputs_are_fed_and_open_sides_refused(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(16)
    integer = {"inputs": (TensorSpec("ids", "int64", (-1, 4)),)}
    runners = make_runner(device, 5.0, **integer), make_runner(device, 5.0, **integer)
    assert virtual_comparison(*runners).batch == 1
    free = {"inputs": (TensorSpec("input", "float32", (-1, 3, -1, -1)),)}
    with pytest.raises(ConfigError, match="every side but the batch fixed"):
        virtual_comparison(make_runner(device, 5.0, **free), make_runner(device, 5.0, **free))


def test_garbage_collection_is_off_while_timing_and_back_on_after_a_failure(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device, seen = make_device(17), set()

    def stolen() -> float:
        seen.add(gc.isenabled())
        return 0.0

    virtual_comparison(make_runner(device, 5.0), make_runner(device, 5.0), stolen=stolen)
    assert seen == {False}
    with pytest.raises(Refused, match=r"40 rounds would take .* s allowed; use a smaller --batch"):
        virtual_comparison(make_runner(device, 9e3), make_runner(device, 9e3))
    assert gc.isenabled()


def test_percentiles_appear_only_with_enough_blocks(
    make_device: Make, make_runner: Make, virtual_comparison: Compare
) -> None:
    device = make_device(18, outlier_share=0.05)
    runners = make_runner(device, 15.0), make_runner(device, 15.0)
    few, more = virtual_comparison(*runners), virtual_comparison(*runners, rounds=64)
    assert set(few.spread()["against"]) == {"n", "p50_ms", "max_ms"}
    assert set(more.spread()["against"]) == {"n", "p50_ms", "p90_ms", "max_ms"}
    longest = max(s.run_ms for s in more.samples if s.network == "against")
    assert more.spread()["against"]["max_ms"] == longest  # nothing is trimmed


def test_drift_is_what_the_virtual_machine_has() -> None:
    # The guard of the guards: without real drift the tests above would show nothing.
    values = [warming(seconds) for seconds in np.linspace(0, 60, 7)]
    assert all(later > earlier for earlier, later in pairwise(values))
