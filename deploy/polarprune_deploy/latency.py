"""Paired host latency of networks that are loaded side by side, with a control in every comparison.

In each round every network is timed once, in random order, and so is a second load of each
candidate: the A/A control. What is timed is host latency (a monotonic clock around complete runs)
with warm caches: an untimed run goes before each block of short ones. Rounds are what gets
resampled; the repetitions inside a block only lift it above the clock's resolution.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from statistics import median

import numpy as np

from polarprune.errors import ConfigError, ParityError
from polarprune_deploy.comparisons import Comparison, Sample, WarmUp
from polarprune_deploy.environment import stolen_seconds, usable_cpus
from polarprune_deploy.runners import Array, Runner
from polarprune_deploy.statistics import (
    CONTROL_CONFIDENCE,
    corrected_confidence,
    decide,
    paired_ratio,
)
from polarprune_deploy.timing import (
    Clock,
    Entrant,
    calibrate,
    enter,
    no_garbage_collection,
    time_rounds,
    warm_up,
)

MIN_ROUNDS = 40
# Two loads of the same float32 network on the same threads may still sum in another order.
CONTROL_RELATIVE_ERROR = 1e-5
# Above this share of the CPU time taken by hypervisor or quota, what is timed is the queue.
THROTTLED_SHARE = 0.10


def compare_latency(
    runners: Sequence[Runner],
    *,
    batch: int,
    rounds: int = MIN_ROUNDS,
    seed: int = 0,
    family: int | None = None,
    max_seconds: float = 600.0,
    clock: Clock = time.perf_counter_ns,
    stolen: Callable[[], float] = stolen_seconds,
) -> list[Comparison]:
    """Compare the first runner with each of the others; one comparison per candidate.

    Args:
        runners: the network compared against, then the candidates; left open.
        batch: images in one run.
        rounds: paired samples of each comparison, at least 40.
        seed: decides the inputs and the order inside each round.
        family: how many verdicts are drawn together (rows of all batch sizes); their intervals
            hold jointly with 95 %, their controls' with 99 %. None takes this call's candidates.
        max_seconds: bound on the timed part of the call.
        clock: nanoseconds; replaced in tests.
        stolen: CPU seconds taken from this process so far by hypervisor or quota.

    Raises:
        ConfigError: fewer than two runners or 40 rounds, or sides that differ in more than weights.
        ParityError: an output is not finite, or two loads of one candidate disagree; nothing has
            been timed then.
        Refused: the networks are too slow for the rounds to fit into `max_seconds`.
    """
    _check_request(runners, rounds)
    members = len(runners) - 1 if family is None else family
    generator = np.random.default_rng([seed, batch])
    inputs = random_inputs(runners[0], batch, generator)
    with ExitStack() as stack:
        against = enter("against", runners[0], inputs, clock)
        pairs: list[tuple[Entrant, Entrant]] = []
        for index, runner in enumerate(runners[1:]):
            twin = stack.enter_context(closing(runner.twin()))
            suffix = "" if len(runners) == 2 else f"_{index}"
            pair = (
                enter(f"candidate{suffix}", runner, inputs, clock),
                enter(f"control{suffix}", twin, inputs, clock),
            )
            pairs.append(pair)
        entrants = [against, *(entrant for pair in pairs for entrant in pair)]
        _check_outputs(against, pairs)
        with no_garbage_collection():
            stolen_before, begun = stolen(), clock()
            warm_ups = [warm_up(entrant, clock) for entrant in entrants]
            plan = calibrate([each.steady_run_ms for each in warm_ups], rounds, max_seconds)
            samples = time_rounds(entrants, batch, rounds, plan, generator, clock)
            share = (stolen() - stolen_before) / ((clock() - begun) / 1e9) / usable_cpus()
    return [_conclude(against, pair, samples, warm_ups, members, share) for pair in pairs]


def random_inputs(runner: Runner, batch: int, generator: np.random.Generator) -> dict[str, Array]:
    """Standard normal images, or small integers for integer inputs.

    Raises:
        ConfigError: the network does not take this batch size, or leaves another side open.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    inputs: dict[str, Array] = {}
    for spec in runner.inputs:
        first, *rest = spec.shape
        if first not in (-1, batch):
            raise ConfigError(
                f"{runner.name} was exported for batches of {first}, got batch {batch}; "
                "export it with a dynamic batch"
            )
        if any(side < 0 for side in rest):
            raise ConfigError(
                f"input {spec.name} of {runner.name} has the open shape {list(spec.shape)}; "
                "latency needs every side but the batch fixed"
            )
        shape = (batch, *rest)
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            inputs[spec.name] = generator.standard_normal(shape).astype(dtype)
        else:
            largest = 255 if dtype == np.uint8 else 1  # pixels; an index must be one that exists
            inputs[spec.name] = generator.integers(0, largest + 1, shape).astype(dtype)
    return inputs


def _check_request(runners: Sequence[Runner], rounds: int) -> None:
    if len(runners) < 2:
        raise ConfigError(f"a comparison needs two runners or more, got {len(runners)}")
    if rounds < MIN_ROUNDS:
        raise ConfigError(f"a comparison needs at least {MIN_ROUNDS} rounds, got {rounds}")
    against = runners[0]
    for runner in runners[1:]:
        for what, wanted, got in (
            ("backend", against.backend, runner.backend),
            ("device", against.device, runner.device),
            ("precision", against.precision, runner.precision),
            ("settings", dict(against.settings), dict(runner.settings)),
            ("inputs", _shapes(against), _shapes(runner)),
        ):
            if wanted != got:
                raise ConfigError(
                    f"{runner.name} and {against.name} must have the same {what} to be compared, "
                    f"got {got} and {wanted}"
                )


def _shapes(runner: Runner) -> list[tuple[str, str, tuple[int, ...]]]:
    """Inputs as far as both sides must share them: the batch side is settled by the request."""
    return [(spec.name, spec.dtype, spec.shape[1:]) for spec in runner.inputs]


def _check_outputs(against: Entrant, pairs: Sequence[tuple[Entrant, Entrant]]) -> None:
    """Run everybody once on fresh inputs, into output buffers that were poisoned before."""
    for entrant in (against, *(entrant for pair in pairs for entrant in pair)):
        entrant.call()
        for name, output in entrant.call.outputs().items():
            if not np.all(np.isfinite(output)):
                raise ParityError(
                    f"output {name} of {entrant.runner.name} is not finite on random inputs; "
                    "it was not timed: check the network"
                )
    for candidate, control in pairs:
        again = control.call.outputs()
        for name, output in candidate.call.outputs().items():
            error = np.max(np.abs(output.astype(np.float64) - again[name]), initial=0.0)
            scale = np.max(np.abs(output.astype(np.float64)), initial=0.0)
            if error > CONTROL_RELATIVE_ERROR * scale:
                raise ParityError(
                    f"two loads of {candidate.runner.name} differ by {error:.3g} in output {name} "
                    f"(largest value {scale:.3g}); it was not timed: check the backend"
                )


def _conclude(
    against: Entrant,
    pair: tuple[Entrant, Entrant],
    samples: Sequence[Sample],
    warm_ups: Sequence[WarmUp],
    family: int,
    stolen_share: float,
) -> Comparison:
    candidate, control = pair
    roles = (against.role, candidate.role, control.role)
    # Samples lie in round order, so equal positions in these rows are one round.
    times = {role: [s.run_ms for s in samples if s.network == role] for role in roles}
    effect = paired_ratio(
        times[against.role], times[candidate.role], confidence=corrected_confidence(family)
    )
    control_ratio = paired_ratio(
        times[candidate.role],
        times[control.role],
        confidence=corrected_confidence(family, CONTROL_CONFIDENCE),
    )
    verdict, reason = decide(effect, control_ratio)
    if stolen_share > THROTTLED_SHARE:
        verdict, reason = (
            "inconclusive",
            (f"the machine throttled: {stolen_share:.0%} of the CPU time was taken away"),
        )
    return Comparison(
        backend=candidate.runner.backend,
        device=candidate.runner.device,
        precision=candidate.runner.precision,
        batch=samples[0].batch,
        against=against.runner.name,
        candidate=candidate.runner.name,
        against_ms=median(times[against.role]),
        ms=median(times[candidate.role]),
        effect=effect,
        control=control_ratio,
        verdict=verdict,
        reason=reason,
        settings=dict(candidate.runner.settings),
        sha256={"against": against.runner.sha256, "candidate": candidate.runner.sha256},
        stolen_share=stolen_share,
        warm_ups=tuple(w for w in warm_ups if w.network in roles),
        samples=tuple(sample for sample in samples if sample.network in roles),
    )
