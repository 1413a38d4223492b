"""Latency of several networks cut from one, timed in turn; and the line from layers to networks."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import combinations
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np

from polarprune.collecting import paused_collection
from polarprune_deploy.backends.input_making import random_inputs
from polarprune_deploy.latency import MAX_SECONDS, MIN_ROUNDS
from polarprune_deploy.layers.layer_timers import LayerTimer
from polarprune_deploy.timing import (
    Race,
    calibrate,
    enter,
    time_rounds,
    warm_up,
)

if TYPE_CHECKING:
    from torch import Tensor

    from polarprune.gates import GatedNetwork


def median_latencies(
    gated: "GatedNetwork",
    networks: "Sequence[Mapping[str, Tensor]]",
    timer: LayerTimer,
    *,
    batch: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[float]:
    """Median host latency of each network, milliseconds.

    Args:
        networks: decisions, site by site.
        timer: loads them the way it times layers.
    """
    from polarprune.collapsing import collapse

    generator = np.random.default_rng(seed)
    shape = tuple(gated.analysis.input_shape[1:])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="polarprune-profile-")))
        entrants = []
        for place, decisions in enumerate(networks):
            gated.set_decisions(dict(decisions))
            small = collapse(gated).eval()
            runner = stack.enter_context(closing(timer.load(small, shape, str(place), folder)))
            inputs = random_inputs(runner, batch, generator)
            entrants.append(enter(str(place), runner, inputs, perf_counter_ns))
            progress(place + 1, len(networks) + 1)
        with paused_collection():
            steady = [warm_up(entrant, perf_counter_ns).steady_run_ms for entrant in entrants]
            plan = calibrate(steady, MIN_ROUNDS, MAX_SECONDS)
            race = Race(entrants, batch, MIN_ROUNDS, plan)
            samples = time_rounds(race, generator, perf_counter_ns)
        progress(len(networks) + 1, len(networks) + 1)
    return [
        median(sample.run_ms for sample in samples if sample.network == entrant.role)
        for entrant in entrants
    ]


def fit_sum(
    parts: Sequence[Sequence[float]], whole: Sequence[float]
) -> tuple[tuple[float, ...], float]:
    """(weights, constant), none below 0, with whole = sum of weights x parts + constant.

    Least squares of the relative errors, so that a small network counts as much as a large one; of
    all choices of what is 0 the best that leaves the others positive.

    Args:
        parts: one row a network.
    """
    x, y = np.asarray(parts, dtype=float), np.asarray(whole, dtype=float)
    columns = np.concatenate([x, np.ones((len(y), 1))], axis=1) / y[:, None]
    best, found = np.inf, np.zeros(columns.shape[1])
    for size in range(1, columns.shape[1] + 1):
        for chosen in combinations(range(columns.shape[1]), size):
            some = columns[:, chosen]
            if np.linalg.matrix_rank(some) < size:
                continue
            weights, *_ = np.linalg.lstsq(some, np.ones(len(y)), rcond=None)
            error = float(np.square(some @ weights - 1).sum())
            if weights.min() > 0 and error < best - 1e-12:
                best, found = error, np.zeros(columns.shape[1])
                found[list(chosen)] = weights
    return tuple(float(weight) for weight in found[:-1]), float(found[-1])


def fit_line(layers_ms: Sequence[float], whole_ms: Sequence[float]) -> tuple[float, float]:
    """(factor, constant) with whole = factor x layers + constant, neither below 0; as fit_sum."""
    (factor,), constant = fit_sum([[each] for each in layers_ms], whole_ms)
    return factor, constant
