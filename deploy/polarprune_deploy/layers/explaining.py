"""`bench --explain`: why is the pruned network not faster, or not by more?

Measures both sides' layers, what the machine can do at best, and the pruned network once more with
its channels padded to multiples; what follows from these times is worked out by `gap_budget` and
`worthwhile_changes`, put into words by `explanation_tables`.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from polarprune.collecting import paused_collection
from polarprune.errors import BundleError, ConfigError, ParityError
from polarprune_deploy.backends.input_making import random_inputs
from polarprune_deploy.backends.network_bytes import NetworkBytes
from polarprune_deploy.backends.runner_onnxruntime import OnnxRuntimeRunner
from polarprune_deploy.backends.runners import Array, Runner
from polarprune_deploy.layers.explanation import Explanation, conclude
from polarprune_deploy.layers.layer_times import Measured, NetworkTimes, Padded, Roof, fitted
from polarprune_deploy.layers.layer_times_onnxruntime import (
    NodeCost,
    ProfiledRun,
    ProfiledRunner,
    check_same_outputs,
    kernels_of,
    measure_node_cost,
    read_profile,
    require_onnxruntime,
)
from polarprune_deploy.layers.layers_onnx import OnnxLayers, read_layers
from polarprune_deploy.layers.roofline import measure_roof_onnxruntime
from polarprune_deploy.quiet_runs import median_noise, quietest, timed, watched
from polarprune_deploy.timing import SETTLED_RUN_MS

MULTIPLES = (4, 8, 16, 32)
VISITS, FEWEST_VISITS = 60, 5
VISIT_MS = 2.0
MOST_RUNS = 4
SECONDS = 20.0
"""The timed part of one explanation; slow networks get fewer visits, and the words say how many."""


class Explainer:
    """Explains rows of one bench; what the machine can do is measured once for all of them."""

    def __init__(self) -> None:
        self._roofs: dict[tuple[str, int, str], Roof] = {}
        self._costs: dict[tuple[str, int], NodeCost] = {}

    def check(self, against: Runner, candidate: Runner) -> None:
        """Refuse what `explain` would, without timing the networks.

        Raises:
            BackendUnavailable: the backend's layers can't be timed.
            ConfigError: a network has no layer with MACs.
        """
        for runner in map(require_onnxruntime, (against, candidate)):
            _layers(runner, 1)
            self._cost(runner)

    def explain(
        self, against: Runner, candidate: Runner, *, batch: int, seed: int = 0
    ) -> Explanation:
        """Time both networks layer by layer and say where the time went.

        Raises:
            BackendUnavailable: the backend's layers can't be timed.
            ConfigError: a network has no layer with MACs, or takes another batch size.
        """
        sides = [require_onnxruntime(runner) for runner in (against, candidate)]
        return conclude(self._measure(sides[0], sides[1], batch, seed))

    def _cost(self, runner: OnnxRuntimeRunner) -> NodeCost:
        key = runner.device, int(runner.settings["intra_op_threads"])
        if key not in self._costs:
            self._costs[key] = measure_node_cost(*key)
        return self._costs[key]

    def _roof(self, runner: OnnxRuntimeRunner) -> Roof:
        key = runner.device, int(runner.settings["intra_op_threads"]), runner.precision
        if key not in self._roofs:
            self._roofs[key] = measure_roof_onnxruntime(*key)
        return self._roofs[key]

    def _measure(
        self, against: OnnxRuntimeRunner, candidate: OnnxRuntimeRunner, batch: int, seed: int
    ) -> Measured:
        threads = int(candidate.settings["intra_op_threads"])
        layers = [_layers(runner, batch) for runner in (against, candidate)]
        roof, cost = self._roof(candidate), self._cost(candidate)
        inputs = random_inputs(against, batch, np.random.default_rng([seed, batch]))
        with ExitStack() as stack:
            padded, why_not = _padded_models(_model(candidate), candidate, inputs)
            runners = [against, candidate]
            for network in padded.values():
                runner = OnnxRuntimeRunner(network, device=candidate.device, threads=threads)
                runners.append(stack.enter_context(closing(runner)))
            layers += [read_layers(_model(runner), batch) for runner in runners[2:]]
            race = _race(runners, inputs)
        times = [
            fitted(
                NetworkTimes(
                    runner.name,
                    median(race.run_ms(i)),
                    tuple(
                        kernels_of([run for _, run in race.profiled[i]], layers[i], cost.record_ms)
                    ),
                    layers[i].layers,
                ),
                cost.launch_ms,
            )
            for i, runner in enumerate(runners)
        ]
        return Measured(
            backend=candidate.backend,
            device=candidate.device,
            batch=batch,
            dense=times[0],
            pruned=times[1],
            roof=roof,
            launch_ms=cost.launch_ms,
            noise_ms=median_noise(race.run_ms(1)),
            runs=len(race.plain[1]),
            interrupted=race.interrupted,
            padded=tuple(
                _as_padded(multiple, each) for multiple, each in zip(padded, times[2:], strict=True)
            ),
            why_not_padded=why_not,
            settings={"precision": candidate.precision, **candidate.settings},
        )


@dataclass
class _Race:
    """Of each network: its plain runs and its profiled ones, first runs of a visit left out.

    With each run, how often the scheduler took a CPU from this process meanwhile.
    """

    plain: list[list[tuple[int, float]]]
    profiled: list[list[tuple[int, ProfiledRun]]] = field(default_factory=list)

    def keep_quiet_runs(self) -> None:
        """Keep the quietest of each network's runs, plain and profiled."""
        self.plain = [quietest(runs, lambda run: run) for runs in self.plain]
        self.profiled = [quietest(runs, lambda run: (run[0], run[1].ms)) for runs in self.profiled]

    def run_ms(self, index: int) -> list[float]:
        """The runs that were kept."""
        return [ms for _, ms in self.plain[index]]

    @property
    def interrupted(self) -> bool:
        """Whether most of the kept runs of either side were interrupted all the same."""
        return any(median(count for count, _ in times) > 0 for times in self.plain[:2])


def _race(runners: Sequence[OnnxRuntimeRunner], inputs: Mapping[str, Array]) -> _Race:
    """Visit every network in turn, plain and profiled; short ones first run once untimed."""
    with ExitStack() as stack:
        profilers = [
            stack.enter_context(
                closing(
                    ProfiledRunner(
                        runner.network,
                        device=runner.device,
                        threads=int(runner.settings["intra_op_threads"]),
                    )
                )
            )
            for runner in runners
        ]
        calls = [runner.prepare(inputs) for runner in (*runners, *profilers)]
        once = [min(timed(call) for _ in range(2)) for call in calls]
        runs = max(1, min(MOST_RUNS, math.ceil(VISIT_MS / max(min(once), 1e-3))))
        untimed = int(min(once) < SETTLED_RUN_MS)
        affordable = int(SECONDS * 1e3 / ((runs + untimed) * sum(once)))
        visits = max(FEWEST_VISITS, min(VISITS, affordable))
        seen_runs: list[list[tuple[int, float]]] = [[] for _ in calls]
        with paused_collection():
            for _ in range(visits):
                for index, call in enumerate(calls):
                    took = [watched(call) for _ in range(untimed + runs)][untimed:]
                    seen_runs[index] += took
        race = _Race(seen_runs[: len(runners)])
        for profiler, seen in zip(profilers, seen_runs[len(runners) :], strict=True):
            found = read_profile(profiler.events())[-visits * (untimed + runs) :]
            kept = [run for i, run in enumerate(found) if i % (untimed + runs) >= untimed]
            counts = [count for count, _ in seen]
            race.profiled.append(list(zip(counts, kept, strict=True)))
    race.keep_quiet_runs()
    return race


def _padded_models(
    model: Any, candidate: OnnxRuntimeRunner, inputs: Mapping[str, Array]
) -> tuple[dict[int, NetworkBytes], str]:
    """The candidate padded to each multiple, as far as it can be; else the reason, in words."""
    from polarprune_deploy.layers.channel_padding import pad_channels

    found: dict[int, NetworkBytes] = {}
    reason = "its channel counts are multiples already, or at operators that padding does not know"
    for multiple in MULTIPLES:
        padded = pad_channels(model, multiple)
        data = b"" if padded is None else padded.SerializeToString()
        if not data or any(data == other.data for other in found.values()):
            continue
        name = f"{candidate.name}, padded to {multiple}"
        network = NetworkBytes(name, data, "", candidate.precision)
        try:
            threads = int(candidate.settings["intra_op_threads"])
            runner = OnnxRuntimeRunner(network, device=candidate.device, threads=threads)
            with closing(runner):
                check_same_outputs(candidate, runner, inputs)
        except (ParityError, BundleError) as error:
            reason = str(error)
            continue
        found[multiple] = network
    return found, "" if found else reason


def _as_padded(multiple: int, times: NetworkTimes) -> Padded:
    return Padded(
        multiple,
        times.run_ms,
        times.kernel_ms,
        times.layer_ms(),
        {layer.name: layer.macs for layer in times.layers},
        {layer.name: (layer.in_channels, layer.out_channels) for layer in times.layers},
    )


def _model(runner: OnnxRuntimeRunner) -> Any:
    import onnx

    return onnx.load_from_string(runner.network.data)


def _layers(runner: OnnxRuntimeRunner, batch: int) -> OnnxLayers:
    found = read_layers(_model(runner), batch)
    if not found.layers:
        raise ConfigError(
            f"{runner.name} has no convolution or linear layer with stored weights, so there are "
            "no MACs to explain its time by; leave --explain away"
        )
    return found
