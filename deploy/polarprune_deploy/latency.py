"""Paired latency of networks that are loaded side by side, with a control in every comparison.

In each round every network is timed once, in random order, and so is a second load of each
candidate: the A/A control. Host latency is always timed (a monotonic clock around complete runs);
where the device tells its own time, that is timed beside it and never mixed in. Caches are warm (an
untimed run goes before each block of short ones, the buffers are the same run after run) or cold.
Rounds are what gets resampled; the repetitions inside a block only lift it above the clock's
resolution.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from polarprune.collecting import paused_collection
from polarprune.errors import ConfigError
from polarprune_deploy.backends.input_making import inputs_for, random_inputs
from polarprune_deploy.backends.runners import Array, DeviceTimed, Runner
from polarprune_deploy.cache_regimes import Eviction, eviction_for
from polarprune_deploy.comparisons import Comparison, WarmUp
from polarprune_deploy.concluding import Circumstances, conclude
from polarprune_deploy.environment import stolen_seconds, usable_cpus
from polarprune_deploy.gpu_state import GpuMonitor, GpuState, gpu_monitor
from polarprune_deploy.side_checks import check_alike, check_outputs
from polarprune_deploy.statistics import PERCENTILE_FLOORS
from polarprune_deploy.timing import (
    Clock,
    Entrant,
    Race,
    calibrate,
    enter,
    time_rounds,
    warm_up,
)

MIN_ROUNDS = 40
SCENARIOS = ("offline", "single_stream")
MAX_SECONDS = 600.0

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many steps of it are done, and how many there are."""


def compare_latency(
    runners: Sequence[Runner],
    *,
    batch: int,
    rounds: int = MIN_ROUNDS,
    seed: int = 0,
    family: int | None = None,
    scenario: str = "offline",
    cache: str = "warm",
    across_precisions: bool = False,
    max_seconds: float = MAX_SECONDS,
    clock: Clock = time.perf_counter_ns,
    stolen: Callable[[], float] = stolen_seconds,
    monitor: Callable[[str], GpuMonitor | None] = gpu_monitor,
    eviction: Callable[[str, str], Eviction | None] = eviction_for,
    progress: Progress = lambda text, step, steps: None,
) -> list[Comparison]:
    """Compare the first runner with each of the others; one comparison per candidate.

    Args:
        runners: the network compared against, then the candidates; left open.
        batch: images in one run.
        rounds: paired samples of each comparison, at least 40.
        seed: decides the inputs and the order inside each round.
        family: how many rows are drawn together (of all batch sizes and builds); their intervals
            hold jointly with 95 %, their controls' with 99 %. None takes this call's candidates.
            Where device time is told too, each row counts twice.
        scenario: "offline", or "single_stream": batch 1, each run timed by itself, percentiles.
        cache: "warm" or "cold".
        across_precisions: the sides may differ in precision; the comparison then says so.
        max_seconds: bound on the timed part of the call.
        clock: nanoseconds; replaced in tests, as are the four below.
        stolen: CPU seconds taken from this process so far by hypervisor or quota.
        monitor: of a device, what watches its clocks.
        eviction: of a cache regime and a device, what empties the caches.
        progress: told between rounds, never inside of what is timed.

    Raises:
        ConfigError: fewer than two runners or 40 rounds, or sides that differ in more than weights.
        ParityError: an output is not finite, two loads of one candidate disagree, or a side is not
            what its reference says; nothing has been timed then.
        Refused: the networks are too slow for the rounds to fit into `max_seconds`.
    """
    check_request(batch, rounds, scenario)
    if len(runners) < 2:
        raise ConfigError(f"a comparison needs two runners or more, got {len(runners)}")
    check_alike(runners, across_precisions)
    generator = np.random.default_rng([seed, batch])
    inputs = random_inputs(runners[0], batch, generator)
    with ExitStack() as stack:
        field = _enter_all(runners, inputs, clock, stack)
        errors = check_outputs(field.against, field.pairs, field.inputs)
        watcher = monitor(field.against.runner.device)
        evict = eviction(cache, field.against.runner.device)
        with paused_collection():
            before = None if watcher is None else watcher.look()
            stolen_before, begun = stolen(), clock()
            warm_ups = _warm_all(field, clock, watcher, batch, progress)
            plan = calibrate(
                [each.steady_run_ms for each in warm_ups],
                rounds,
                max_seconds,
                evict_ms=None if evict is None else _evict_ms(evict, field.against, clock),
                apart=_runs_apart(scenario, rounds),
                blocks=2 if isinstance(field.against.call, DeviceTimed) else 1,
            )
            during: list[GpuState] = []

            def after_round(number: int) -> None:
                if watcher is not None:
                    during.append(watcher.look())
                progress(f"timing, batch {batch}, rounds", number + 1, rounds)

            race = Race(field.entrants, batch, rounds, plan, evict)
            samples = time_rounds(race, generator, clock, after_round)
            share = (stolen() - stolen_before) / ((clock() - begun) / 1e9) / usable_cpus()
        circumstances = Circumstances(
            family=len(runners) - 1 if family is None else family,
            scenario=scenario,
            cache=cache,
            evicted_bytes=0 if evict is None else evict.written,
            across_precisions=across_precisions,
            stolen_share=share,
            gpu=None if watcher is None or before is None else watcher.report(before, during),
            reference_errors=errors,
        )
    return [conclude(field.against, pair, samples, warm_ups, circumstances) for pair in field.pairs]


@dataclass(frozen=True)
class _Field:
    """Everybody who is timed, and what each role was prepared with."""

    against: Entrant
    pairs: list[tuple[Entrant, Entrant]]
    inputs: dict[str, dict[str, Array]]

    @property
    def entrants(self) -> list[Entrant]:
        return [self.against, *(entrant for pair in self.pairs for entrant in pair)]


def _enter_all(
    runners: Sequence[Runner], inputs: dict[str, Array], clock: Clock, stack: ExitStack
) -> _Field:
    """Load the controls and prepare everybody; the stack closes the controls."""
    given = {"against": inputs_for(runners[0], inputs)}
    against = enter("against", runners[0], given["against"], clock)
    pairs = []
    for index, runner in enumerate(runners[1:]):
        twin = stack.enter_context(closing(runner.twin()))
        suffix = "" if len(runners) == 2 else f"_{index}"
        mine = given[f"candidate{suffix}"] = inputs_for(runner, inputs)
        candidate = enter(f"candidate{suffix}", runner, mine, clock)
        pairs.append((candidate, enter(f"control{suffix}", twin, mine, clock)))
    return _Field(against, pairs, given)


def _warm_all(
    field: _Field, clock: Clock, watcher: GpuMonitor | None, batch: int, progress: Progress
) -> list[WarmUp]:
    """Everybody until steady, and until a GPU has left its idle clock."""
    warm_ups = []
    for number, entrant in enumerate(field.entrants):
        progress(f"warming up, batch {batch}", number, len(field.entrants))
        warm_ups.append(warm_up(entrant, clock, lambda: watcher is None or not watcher.look().idle))
    return warm_ups


def check_request(batch: int, rounds: int, scenario: str) -> None:
    """Refuse numbers and words out of range.

    Raises:
        ConfigError: which one.
    """
    if scenario not in SCENARIOS:
        raise ConfigError(f"scenario must be one of {', '.join(SCENARIOS)}, got {scenario!r}")
    if rounds < MIN_ROUNDS:
        raise ConfigError(f"a comparison needs at least {MIN_ROUNDS} rounds, got {rounds}")
    if scenario == "single_stream" and batch != 1:
        raise ConfigError(f"single_stream sends one image at a time, got batch {batch}; use 1")


def check_feasible(runners: Sequence[Runner], batch: int, rounds: int) -> None:
    """Refuse what would take too long, by two runs of each network, before anything is timed.

    Raises:
        Refused: as `compare_latency` would.
        ConfigError: a network does not take the batch.
    """
    inputs = random_inputs(runners[0], batch, np.random.default_rng(0))
    run_ms = []
    for runner in runners:
        call = runner.prepare(inputs_for(runner, inputs))
        times = []
        for _ in range(2):
            start = time.perf_counter_ns()
            call()
            times.append((time.perf_counter_ns() - start) / 1e6)
        run_ms.append(min(times))
    # A control for each candidate runs beside it.
    calibrate([*run_ms, *run_ms[1:]], rounds, MAX_SECONDS)


def _runs_apart(scenario: str, rounds: int) -> int:
    """Runs a round so that all rounds together allow the highest percentile."""
    if scenario == "offline":
        return 0
    return math.ceil(max(PERCENTILE_FLOORS.values()) / rounds)


def _evict_ms(eviction: Eviction, entrant: Entrant, clock: Clock) -> float:
    """What emptying the caches takes, the second time."""
    eviction.before(entrant.call)
    start = clock()
    eviction.before(entrant.call)
    return (clock() - start) / 1e6
