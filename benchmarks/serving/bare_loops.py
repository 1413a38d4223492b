"""The same network without a server: one session in a loop, as the server loads it."""

import time
from pathlib import Path

import numpy as np

from polarprune_deploy import load_runner


class BareLoop:
    """One session; batches of random images."""

    def __init__(self, bundle: Path, threads: int | None) -> None:
        """Load it as `polarprune serve` does."""
        self._runner = load_runner(bundle, threads=threads)
        self._inputs: dict[int, dict[str, np.ndarray]] = {}

    def seconds_of_runs(self, batch: int, seconds: float, least: int = 3) -> list[float]:
        """How long each of many runs took, one behind the other, for so many seconds."""
        inputs = self._inputs_of(batch)
        times: list[float] = []
        self._runner.run(inputs)
        end = time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            start = time.perf_counter()
            self._runner.run(inputs)
            times.append(time.perf_counter() - start)
        return times

    def throughput(self, batch: int, seconds: float) -> float:
        """Images a second."""
        times = self.seconds_of_runs(batch, seconds)
        return batch * len(times) / sum(times)

    def _inputs_of(self, batch: int) -> dict[str, np.ndarray]:
        if batch not in self._inputs:
            generator = np.random.default_rng(0)
            self._inputs[batch] = {
                spec.name: generator.standard_normal((batch, *spec.shape[1:])).astype(spec.dtype)
                for spec in self._runner.inputs
            }
        return self._inputs[batch]
