"""A layer timer that remembers what it timed, so that a table can be made in several calls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.record_file import RecordFile
from polarprune.graph.geometry import Geometry
from polarprune_deploy.backends.runners import Runner
from polarprune_deploy.layers.layer_requests import LayerRequest, Progress
from polarprune_deploy.layers.layer_timers import LayerTimer

# Layers in one line of the record: seconds of work.
CHUNK = 100
_FIRST_GUESS = 30.0


class RecordedTimer:
    """A `LayerTimer`: another one, with a record and a deadline."""

    def __init__(self, timer: LayerTimer, record: RecordFile, deadline: Deadline) -> None:
        """Read what is there."""
        self._timer, self._record, self._deadline = timer, record, deadline
        self._guess = _FIRST_GUESS
        self._known = {
            LayerRequest(Geometry.from_dict(line["geometry"]), inputs, outputs): ms
            for line in record.all("points")
            for inputs, outputs, ms in line["points"]
        }

    @property
    def head(self) -> Mapping[str, str | int | None]:
        """The other's."""
        return self._timer.head

    def time_layers(
        self, requests: Sequence[LayerRequest], *, batch: int, seed: int, progress: Progress
    ) -> list[float]:
        """What is known is not timed again; the rest in random order, a line for each chunk.

        Raises:
            TimeIsUp: what fitted is recorded.
        """
        missing = list(dict.fromkeys(each for each in requests if each not in self._known))
        order = np.random.default_rng(seed).permutation(len(missing)).tolist()
        for start in range(0, len(order), CHUNK):
            chosen = [missing[place] for place in order[start : start + CHUNK]]
            self._deadline.check(self._guess, f"the last {len(order) - start} layers")
            left = self._deadline.left()
            found = self._timer.time_layers(
                chosen, batch=batch, seed=seed + start, progress=lambda *_: None
            )
            self._guess = 1.5 * (left - self._deadline.left())
            self._remember(chosen, found)
            progress(start + len(chosen), len(order))
        return [self._known[each] for each in requests]

    def load(self, network: Any, image_shape: tuple[int, ...], name: str, folder: Path) -> Runner:
        """As the other does."""
        return self._timer.load(network, image_shape, name, folder)

    def _remember(self, requests: Sequence[LayerRequest], times: Sequence[float]) -> None:
        by_geometry: dict[Geometry, list[tuple[int, int, float]]] = {}
        for each, ms in zip(requests, times, strict=True):
            self._known[each] = ms
            by_geometry.setdefault(each.geometry, []).append((each.inputs, each.outputs, ms))
        for geometry, points in by_geometry.items():
            self._record.add("points", geometry=geometry.as_dict(), points=points)
