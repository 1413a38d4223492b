"""A runner: one network, loaded once by one backend, behind a protocol that every backend meets.

Nothing here imports a backend; each lives in its own module (`loading` chooses).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from polarprune.manifest import BatchProfile, TensorSpec

Array = NDArray[Any]


class PreparedRun(Protocol):
    """Inputs in place and outputs allocated: calling it is the work that gets timed.

    A call returns when the outputs are complete, on whatever device they are.
    """

    def __call__(self) -> None:
        """Run once."""
        ...

    def outputs(self) -> dict[str, Array]:
        """The outputs of the last call, on the host. NaN where a call wrote nothing."""
        ...


@runtime_checkable
class RefillableRun(PreparedRun, Protocol):
    """A prepared run that can be given other inputs of the same shapes."""

    def refill(self, inputs: Mapping[str, Array]) -> None:
        """Copy them to where the next call reads its inputs."""
        ...


class Stopwatch(Protocol):
    """Pairs of marks on a device's own clock, all made beforehand."""

    def start(self, run: int) -> None:
        """Mark where a run begins."""
        ...

    def stop(self, run: int) -> None:
        """Mark where it ends."""
        ...

    def elapsed_ns(self) -> list[int]:
        """Wait for the last mark, and tell the time between each pair."""
        ...


@runtime_checkable
class DeviceTimed(PreparedRun, Protocol):
    """A prepared run whose work the device itself can time."""

    @property
    def stream(self) -> Any:
        """What the work is queued on."""
        ...

    def submit(self) -> None:
        """Queue one run, and do not wait for it."""
        ...

    def stopwatch(self, runs: int) -> Stopwatch:
        """A stopwatch on the work's stream for so many runs."""
        ...


class Runner(Protocol):
    """One loaded network."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def backend(self) -> str:
        """One of `BACKENDS` except "auto"."""
        ...

    @property
    def device(self) -> str:
        """One of `DEVICES`."""
        ...

    @property
    def precision(self) -> str:
        """fp32, fp16, bf16 or int8."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a run takes; a free side, the batch, is -1.

        Where it says bfloat16, which numpy has not, a run takes float32 and rounds it.
        """
        ...

    @property
    def settings(self) -> Mapping[str, str | int | float]:
        """What else decides the speed (threads, spinning); equal on both sides of a comparison."""
        ...

    @property
    def sha256(self) -> str:
        """Digest of what was loaded."""
        ...

    @property
    def load_ms(self) -> float:
        """Cold start: from bytes in memory to a network that can run."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, on the host."""
        ...

    def prepare(self, inputs: Mapping[str, Array]) -> PreparedRun:
        """Everything of a run that need not be repeated; may run once to learn the shapes."""
        ...

    def twin(self) -> "Runner":
        """The same bytes loaded a second time, sharing nothing: the A/A control."""
        ...

    def close(self) -> None:
        """Free what was loaded; a second call does nothing."""
        ...


@runtime_checkable
class Profiled(Protocol):
    """A runner that takes only the batch sizes it was built for."""

    @property
    def profiles(self) -> Sequence[BatchProfile]:
        """The ranges that it takes."""
        ...


@runtime_checkable
class Referenced(Protocol):
    """A runner that knows, from something slower and plainer, what its outputs should be."""

    def expected(self, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
        """Outputs by name in float32 arithmetic; None where nothing here can tell."""
        ...
