"""The same network without a server: sessions in a loop, as the server loads them."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from polarprune_deploy import load_runner
from polarprune_deploy.runners import Runner


class BareLoop:
    """One session; batches of random images."""

    def __init__(self, bundle: Path, threads: int | None) -> None:
        """Load it as `polarprune serve` does."""
        self._runner = load_runner(bundle, threads=threads)
        self._narrow = load_runner(bundle, threads=1)
        self._inputs: dict[int, dict[str, np.ndarray]] = {}

    def seconds_of_runs(self, batch: int, seconds: float, least: int = 3) -> list[float]:
        """How long each of many runs took on all cores, one behind the other, for so long."""
        return _times(self._runner, self._inputs_of(batch), seconds, least)

    def throughput(self, batch: int, seconds: float, at_once: int = 1) -> float:
        """Images a second: runs one behind the other on all cores, or several on one core each."""
        if at_once == 1:
            times = self.seconds_of_runs(batch, seconds)
            return batch * len(times) / sum(times)
        inputs = self._inputs_of(batch)
        with ThreadPoolExecutor(at_once) as pool:
            loops = [
                pool.submit(_times, self._narrow, inputs, seconds) for _ in range(at_once)
            ]  # fmt: skip
            return sum(batch * len(times) / sum(times) for times in map(_result, loops))

    def _inputs_of(self, batch: int) -> dict[str, np.ndarray]:
        if batch not in self._inputs:
            generator = np.random.default_rng(0)
            self._inputs[batch] = {
                spec.name: generator.standard_normal((batch, *spec.shape[1:])).astype(spec.dtype)
                for spec in self._runner.inputs
            }
        return self._inputs[batch]


def _times(
    runner: Runner, inputs: dict[str, np.ndarray], seconds: float, least: int = 3
) -> list[float]:
    times: list[float] = []
    runner.run(inputs)
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        runner.run(inputs)
        times.append(time.perf_counter() - start)
    return times


def _result(loop: "Future[list[float]]") -> list[float]:
    return loop.result()
