"""The same network without a server: a session in a loop."""

import time
from pathlib import Path
from statistics import median

import numpy as np

from polarprune_deploy.backends.network_bytes import read_network
from polarprune_deploy.backends.runner_onnxruntime import OnnxRuntimeRunner

SLOW = 3.0
"""Times the median, from which on a run was disturbed by the machine."""


class BareLoop:
    """One session; batches of random images."""

    def __init__(self, bundle: Path, threads: int | None, *, spinning: bool) -> None:
        """Load it.

        Args:
            bundle: holds the ONNX file.
            threads: inside of a run.
            spinning: as usual; the server's sessions do not.
        """
        self._runner = OnnxRuntimeRunner(read_network(bundle), threads=threads, spinning=spinning)
        self._inputs: dict[int, dict[str, np.ndarray]] = {}

    def run(self, batch: int) -> None:
        """Once."""
        self._runner.run(self._inputs_of(batch))

    def seconds_of_runs(self, batch: int, seconds: float, least: int = 3) -> list[float]:
        """How long each of many runs took, one behind the other, for so many seconds."""
        times: list[float] = []
        self.run(batch)
        end = time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            start = time.perf_counter()
            self.run(batch)
            times.append(time.perf_counter() - start)
        return times

    def _inputs_of(self, batch: int) -> dict[str, np.ndarray]:
        if batch not in self._inputs:
            generator = np.random.default_rng(0)
            self._inputs[batch] = {
                spec.name: generator.standard_normal((batch, *spec.shape[1:])).astype(spec.dtype)
                for spec in self._runner.inputs
            }
        return self._inputs[batch]


def slow_share(times: list[float]) -> float:
    """Share of the time that went into runs of several times the usual length.

    >>> slow_share([1.0] * 16 + [4.0])
    0.2
    """
    limit = SLOW * median(times)
    return sum(t for t in times if t > limit) / sum(times)
