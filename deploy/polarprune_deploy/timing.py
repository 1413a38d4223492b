"""Warm-up, calibration and timed rounds: everything between a clock and raw samples.

Two quantities, never mixed. Host latency: the monotonic clock around complete runs, each submitted
and waited for. Device time: what the device's own clock says between two marks on the work's
stream, for runs queued one behind the other with one wait at the end; the host's time to queue them
is the enqueue time. The clock is an argument everywhere, so that the whole of it runs in tests on a
clock that nobody waits for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from polarprune.errors import Refused
from polarprune_deploy.backends.runners import Array, DeviceTimed, PreparedRun, Runner, Stopwatch
from polarprune_deploy.cache_regimes import Eviction
from polarprune_deploy.comparisons import Sample, WarmUp

Clock = Callable[[], int]
"""Nanoseconds from any origin, never backwards."""

WARM_UP_LIMIT_NS = 2_000_000_000
# Three windows of this length: at least 200 ms, and a drift over them is seen.
WARM_UP_WINDOW_NS = 70_000_000
WARM_UP_WINDOWS = 3
# perf_analyzer's stability rule: the last three windows lie within 10 % of each other.
STABLE_SPREAD = 1.10
# A block this long makes the 30 to 60 ns of two clock readings less than 0.01 % of it.
BLOCK_MS = 10.0
SHORTEST_BLOCK_MS = 2.0
# Below this, the weights a network finds gone from the caches are a visible part of its first run.
SETTLED_RUN_MS = 50.0


@dataclass(frozen=True)
class BlockPlan:
    """Runs of each network in each round: first untimed, to warm the caches, then timed.

    `apart`: each timed run by itself, and not the block as a whole.
    """

    untimed: int
    timed: int
    apart: bool = False


@dataclass(frozen=True)
class Entrant:
    """A network in the race: its role, its runner, and the call that is timed."""

    role: str
    runner: Runner
    call: PreparedRun
    prepare_ms: float


def enter(role: str, runner: Runner, inputs: Mapping[str, Array], clock: Clock) -> Entrant:
    """Prepare a runner for the race, and note what that took."""
    start = clock()
    call = runner.prepare(inputs)
    return Entrant(role, runner, call, (clock() - start) / 1e6)


def warm_up(entrant: Entrant, clock: Clock, ready: Callable[[], bool] = lambda: True) -> WarmUp:
    """Run until three windows agree, 200 ms at the least, or until two seconds have passed.

    `ready` says when the device has left its idle clock: until then nothing is steady.
    """
    windows: list[float] = []
    runs, start = 0, clock()
    elapsed, stable = 0, False
    while not stable and elapsed < WARM_UP_LIMIT_NS:
        window_start, window_runs = clock(), 0
        # Once at least: a busy machine may take longer than a window from one line to the next.
        while not window_runs or clock() - window_start < WARM_UP_WINDOW_NS:
            entrant.call()
            window_runs += 1
        windows.append((clock() - window_start) / window_runs / 1e6)
        runs += window_runs
        elapsed = clock() - start
        last = windows[-WARM_UP_WINDOWS:]
        level = len(last) == WARM_UP_WINDOWS and max(last) <= STABLE_SPREAD * min(last)
        stable = level and ready()
    return WarmUp(
        network=entrant.role,
        load_ms=entrant.runner.load_ms,
        prepare_ms=entrant.prepare_ms,
        runs=runs,
        steady_run_ms=median(windows[-WARM_UP_WINDOWS:]),
        stable=stable,
    )


def calibrate(
    run_ms: Sequence[float],
    rounds: int,
    max_seconds: float,
    *,
    evict_ms: float | None = None,
    apart: int = 0,
    blocks: int = 1,
) -> BlockPlan:
    """The same plan for all networks, so that each side meets equally cold first runs.

    Args:
        run_ms: of each network.
        evict_ms: what emptying the caches takes; None where runs are warm.
        apart: at least so many runs, each timed by itself; 0 times blocks.
        blocks: timed blocks of a network in a round: 2 where a device tells its time as well.

    Raises:
        Refused: even the shortest sound blocks would not fit into `max_seconds`.
    """
    fastest, together = min(run_ms), math.fsum(run_ms)
    evicting = evict_ms or 0.0
    by_itself = apart > 0 or evict_ms is not None
    wanted = max(math.ceil(BLOCK_MS / (fastest + evicting)), apart)
    shortest = 1 if by_itself else math.ceil(SHORTEST_BLOCK_MS / fastest)
    untimed = int(evict_ms is None and fastest < SETTLED_RUN_MS)
    one_pass = (together + evicting * len(run_ms)) * blocks
    affordable = int((max_seconds * 1e3 / rounds - untimed * together) / one_pass)
    if affordable < shortest:
        needed = (shortest * one_pass + untimed * together) * rounds / 1e3
        raise Refused(
            f"{rounds} rounds would take {needed:.0f} s, over the {max_seconds:.0f} s allowed; "
            "use a smaller batch"
        )
    return BlockPlan(untimed, min(wanted, affordable), by_itself)


@dataclass(frozen=True)
class Race:
    """What is timed in which way: the entrants, the plan, and what empties the caches."""

    entrants: Sequence[Entrant]
    batch: int
    rounds: int
    plan: BlockPlan
    eviction: Eviction | None = None

    def watches(self) -> dict[str, Stopwatch]:
        """A stopwatch for each entrant whose device can tell its time, all made beforehand."""
        return {
            entrant.role: entrant.call.stopwatch(self.plan.timed)
            for entrant in self.entrants
            if isinstance(entrant.call, DeviceTimed)
        }


def time_rounds(
    race: Race,
    generator: np.random.Generator,
    clock: Clock,
    after_round: Callable[[int], None] = lambda number: None,
) -> list[Sample]:
    """Every network once a round, in an order drawn for that round; samples in round order.

    `after_round` is called between rounds, outside of what is timed.
    """
    samples = []
    watches = race.watches()
    for number in range(race.rounds):
        for position, index in enumerate(generator.permutation(len(race.entrants))):
            entrant = race.entrants[index]
            for _ in range(race.plan.untimed):
                entrant.call()
            elapsed, run_ns = _time_on_host(entrant.call, race, clock)
            device_ns: tuple[int, ...] | None = None
            enqueue_ns: int | None = None
            if entrant.role in watches:
                watch = watches[entrant.role]
                device_ns, enqueue_ns = _time_on_device(entrant.call, watch, race, clock)
            samples.append(
                Sample(
                    race.batch, number, position, entrant.role, race.plan.timed, elapsed,
                    cache="warm" if race.eviction is None else "cold",
                    run_ns=run_ns, device_ns=device_ns, enqueue_ns=enqueue_ns,
                )
            )  # fmt: skip
        after_round(number)
    return samples


def _time_on_host(
    call: PreparedRun, race: Race, clock: Clock
) -> tuple[int, tuple[int, ...] | None]:
    """Time of all timed runs, and of each where they are timed by themselves."""
    if not race.plan.apart:
        start = clock()
        for _ in range(race.plan.timed):
            call()
        return clock() - start, None
    times = []
    for _ in range(race.plan.timed):
        if race.eviction is not None:
            race.eviction.before(call)
        start = clock()
        call()
        times.append(clock() - start)
    return sum(times), tuple(times)


def _time_on_device(
    call: PreparedRun, watch: Stopwatch, race: Race, clock: Clock
) -> tuple[tuple[int, ...], int]:
    """Time of each run on the device's clock, and the host's time to queue all of them."""
    assert isinstance(call, DeviceTimed)  # or it would have no stopwatch
    enqueue = 0
    for run in range(race.plan.timed):
        if race.eviction is not None:
            race.eviction.enqueue(call)
        watch.start(run)
        start = clock()
        call.submit()
        enqueue += clock() - start
        watch.stop(run)
    return tuple(watch.elapsed_ns()), enqueue
