"""A runner as a batcher's engine: batches are filled up to the sizes that it takes.

ONNX Runtime on a CPU takes every size that its graph allows and computes just what it is given.
Elsewhere each size is a recorded graph or a bound context, so that there are few of them: powers of
two, and the ends of an engine's profiles.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from polarprune.errors import ConfigError, Refused
from polarprune.manifest import BatchProfile
from polarprune_deploy.backends.runners import Profiled, RefillableRun, Runner
from polarprune_deploy.serving.batcher import Named

MOST_PREPARED = 16
"""Shapes that are held ready, where images may be of any size; each takes memory of the device."""


class BucketedEngine:
    """One runner, and what it holds for each batch size."""

    def __init__(self, runner: Runner, batch: BatchProfile) -> None:
        """Take a runner and the batch sizes that its bundle allows."""
        self._runner = runner
        self.exact = runner.backend == "onnxruntime" and runner.device == "cpu"
        fixed = runner.inputs[0].shape[0]
        if fixed != -1:
            self.exact = False
            self.sizes: tuple[int, ...] = (fixed,)
        else:
            self.sizes = _sizes(batch, getattr(runner, "profiles", ()))
        if isinstance(runner, Profiled) and fixed == -1:
            self.sizes = tuple(size for size in self.sizes if _allowed(size, runner.profiles))
        self._prepared: dict[tuple[tuple[int, ...], ...], RefillableRun] = {}

    @property
    def most(self) -> int:
        """Images of the largest batch."""
        return self.sizes[-1]

    def bucket(self, rows: int) -> int:
        """The size that so many images are computed at."""
        return rows if self.exact else self.sizes[bisect_left(self.sizes, rows)]

    def assemble(self, parts: Sequence[Named], rows: int) -> Named:
        """The inputs one behind the other; zeros fill them up."""
        bucket = self.bucket(rows)
        if self.exact and len(parts) == 1:
            return parts[0]
        batch = {}
        for name, first in parts[0].items():
            array = np.empty((bucket, *first.shape[1:]), first.dtype)
            np.concatenate([part[name] for part in parts], out=array[:rows])
            array[rows:] = 0
            batch[name] = array
        return batch

    def run(self, batch: Named, rows: int) -> Named:
        """Outputs of the first `rows` images.

        Raises:
            Refused: an output that is not one an image.
        """
        if self.exact:
            return _held_to(rows, self._runner.run(batch))
        run = self._prepared_for(batch)
        run.refill(batch)
        run()
        outputs = _held_to(len(next(iter(batch.values()))), run.outputs())
        # Copied: the next batch overwrites them.
        return {name: array[:rows].copy() for name, array in outputs.items()}

    def _prepared_for(self, batch: Named) -> RefillableRun:
        """What runs such a batch; of those used least lately, the last is given up."""
        shapes = tuple(array.shape for array in batch.values())
        run = self._prepared.pop(shapes, None)
        if run is None:
            if len(self._prepared) >= max(MOST_PREPARED, len(self.sizes)):
                del self._prepared[next(iter(self._prepared))]
            prepared = self._runner.prepare(batch)
            if not isinstance(prepared, RefillableRun):
                raise ConfigError(f"runs of {self._runner.backend} cannot be given new inputs")
            run = prepared
        self._prepared[shapes] = run
        return run

    def close(self) -> None:
        """Free the runner and all that it prepared."""
        self._prepared.clear()
        self._runner.close()


def _held_to(rows: int, outputs: Named) -> Named:
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise Refused(
                f"output {name} has shape {list(array.shape)} for {rows} images; a model that is "
                "served gives one row an image"
            )
    return outputs


def _sizes(batch: BatchProfile, profiles: Sequence[BatchProfile]) -> tuple[int, ...]:
    most = max((profile.max for profile in profiles), default=batch.max)
    sizes = {2**power for power in range(most.bit_length()) if 2**power <= most}
    sizes |= {most, min(batch.opt, most)}
    least = min((profile.min for profile in profiles), default=batch.min)
    return tuple(sorted(size for size in sizes | {least} if size >= least))


def _allowed(size: int, profiles: Sequence[BatchProfile]) -> bool:
    return any(profile.min <= size <= profile.max for profile in profiles)
