"""Warm-up, calibration and timed rounds: everything between a clock and raw samples.

The clock is an argument everywhere, so that the whole of it runs in tests on a clock that nobody
waits for.
"""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np

from polarprune.errors import Refused
from polarprune_deploy.comparisons import Sample, WarmUp
from polarprune_deploy.runners import Array, PreparedRun, Runner

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
    """Runs of each network in each round: first untimed, to warm the caches, then timed."""

    untimed: int
    timed: int


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


def warm_up(entrant: Entrant, clock: Clock) -> WarmUp:
    """Run until three windows agree, 200 ms at the least, or until two seconds have passed."""
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
        stable = len(last) == WARM_UP_WINDOWS and max(last) <= STABLE_SPREAD * min(last)
    return WarmUp(
        network=entrant.role,
        load_ms=entrant.runner.load_ms,
        prepare_ms=entrant.prepare_ms,
        runs=runs,
        steady_run_ms=median(windows[-WARM_UP_WINDOWS:]),
        stable=stable,
    )


def calibrate(run_ms: Sequence[float], rounds: int, max_seconds: float) -> BlockPlan:
    """The same plan for all networks, so that each side meets equally cold first runs.

    Raises:
        Refused: even the shortest sound blocks would not fit into `max_seconds`.
    """
    fastest, together = min(run_ms), math.fsum(run_ms)
    wanted = math.ceil(BLOCK_MS / fastest)
    shortest = math.ceil(SHORTEST_BLOCK_MS / fastest)
    untimed = int(fastest < SETTLED_RUN_MS)
    affordable = int(max_seconds * 1e3 / (rounds * together)) - untimed
    if affordable < shortest:
        needed = (shortest + untimed) * rounds * together / 1e3
        raise Refused(
            f"{rounds} rounds would take {needed:.0f} s, over the {max_seconds:.0f} s allowed; "
            "use a smaller batch"
        )
    return BlockPlan(untimed, min(wanted, affordable))


def time_rounds(
    entrants: Sequence[Entrant],
    batch: int,
    rounds: int,
    plan: BlockPlan,
    generator: np.random.Generator,
    clock: Clock,
) -> list[Sample]:
    """Every network once a round, in an order drawn for that round; samples in round order."""
    samples = []
    for number in range(rounds):
        for position, index in enumerate(generator.permutation(len(entrants))):
            entrant = entrants[index]
            call = entrant.call
            for _ in range(plan.untimed):
                call()
            start = clock()
            for _ in range(plan.timed):
                call()
            elapsed = clock() - start
            samples.append(Sample(batch, number, position, entrant.role, plan.timed, elapsed))
    return samples


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A collection inside a block would be booked on whichever network is running."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
