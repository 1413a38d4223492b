"""The words of an explanation: a layer, a kernel and its time, one network's times together.

Nothing here knows a backend; each has a module of its own that fills these in.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

LayerKind = Literal["convolution", "linear"]


@dataclass(frozen=True)
class Layer:
    """A layer with MACs, as the network states it, at one batch size.

    `macs` and `moved_bytes` (weights, inputs and outputs, each once) are of the whole batch.
    """

    name: str
    kind: LayerKind
    macs: int
    moved_bytes: int
    in_channels: int
    out_channels: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def signature(self) -> tuple[object, ...]:
        """What a layer keeps when channels go: all but its widths."""
        depthwise = self.groups > 1 and self.groups == self.in_channels
        return (self.kind, self.kernel, self.stride, depthwise)

    @property
    def widths(self) -> str:
        """Its channels, in people's words."""
        return f"{self.in_channels}>{self.out_channels}"


@dataclass(frozen=True)
class Kernel:
    """What a backend ran as one piece. `layer` is the layer it belongs to; None: to no one."""

    name: str
    operator: str
    layer: str | None
    ms: float


@dataclass(frozen=True)
class NetworkTimes:
    """One network on one backend at one batch size.

    `run_ms` is the whole run, timed without a profiler; `kernels` come from profiled runs.
    `slowed`: how many times as long as a plain run has room for the kernels took while they were
    profiled; their ms are divided by it already.
    """

    network: str
    run_ms: float
    kernels: tuple[Kernel, ...]
    layers: tuple[Layer, ...]
    slowed: float = 1.0

    @property
    def macs(self) -> int:
        """MACs of the whole batch."""
        return sum(layer.macs for layer in self.layers)

    @property
    def kernel_ms(self) -> float:
        """Time inside kernels."""
        return sum(kernel.ms for kernel in self.kernels)

    @property
    def between_ms(self) -> float:
        """Time of a run that no kernel accounts for."""
        return self.run_ms - self.kernel_ms

    def layer_ms(self) -> dict[str, float]:
        """Time of each layer's kernels together."""
        known = {layer.name: 0.0 for layer in self.layers}
        for kernel in self.kernels:
            if kernel.layer in known:
                known[kernel.layer] += kernel.ms
        return known

    def other_ms(self) -> dict[str, tuple[float, int]]:
        """Of kernels that belong to no layer: time and number, by operator."""
        known = {layer.name for layer in self.layers}
        times: dict[str, list[float]] = defaultdict(list)
        for kernel in self.kernels:
            if kernel.layer not in known:
                times[kernel.operator].append(kernel.ms)
        return {operator: (sum(each), len(each)) for operator, each in times.items()}


def fitted(times: NetworkTimes, launch_ms: float) -> NetworkTimes:
    """The kernels scaled down where they don't fit into the plain run beside their launches.

    A profiler slows short kernels by more than the writing of its records, the more the more
    threads. How that spreads over the kernels is not known; here it is in proportion.
    """
    room = times.run_ms - launch_ms * len(times.kernels)
    if room <= 0 or times.kernel_ms <= room:
        return times
    slowed = times.kernel_ms / room
    kernels = tuple(replace(kernel, ms=kernel.ms / slowed) for kernel in times.kernels)
    return replace(times, kernels=kernels, slowed=slowed)


@dataclass(frozen=True)
class Padded:
    """The pruned network with channels added up to a multiple, as it was measured.

    `run_ms` and `kernel_ms` are None where layers were measured one by one and never as a network.
    `widths` are a layer's channel counts then, in and out; `macs` its MACs.
    """

    multiple: int
    run_ms: float | None
    kernel_ms: float | None
    layer_ms: Mapping[str, float]
    macs: Mapping[str, int]
    widths: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Roof:
    """What the backend reached on this machine when nothing but arithmetic, or memory, counted.

    `bandwidths` are pairs of a working set in bytes and the bytes per ms reached with it, smallest
    first: what fits into a cache moves faster.
    """

    macs_per_ms: float
    bandwidths: tuple[tuple[int, float], ...]

    def compute_ms(self, layer: Layer) -> float:
        """Least time of the layer's arithmetic."""
        return layer.macs / self.macs_per_ms

    def memory_ms(self, layer: Layer) -> float:
        """Least time of moving what the layer reads and writes."""
        fitting = [rate for size, rate in self.bandwidths if size >= layer.moved_bytes]
        return layer.moved_bytes / (fitting[0] if fitting else self.bandwidths[-1][1])

    def bound(self, layer: Layer) -> Literal["compute", "memory"]:
        """Which of the two takes longer."""
        return "compute" if self.compute_ms(layer) >= self.memory_ms(layer) else "memory"

    def share(self, layer: Layer, ms: float) -> float:
        """Fraction of the roof that the layer reached in `ms`; 1 is the roof."""
        return max(self.compute_ms(layer), self.memory_ms(layer)) / ms if ms > 0 else 0.0


@dataclass(frozen=True)
class Measured:
    """All that an explanation is made from; times in, no clock beyond this point.

    `runs` is how many runs the medians are of, `noise_ms` how well the pruned one is known;
    `launch_ms` is what one more kernel adds to a run beside its own work. `padded` is empty where
    nothing was padded; `why_not_padded` then says why. `interrupted`: other processes took CPUs
    from most runs, which shows as time outside of kernels.
    """

    backend: str
    device: str
    batch: int
    dense: NetworkTimes
    pruned: NetworkTimes
    roof: Roof
    launch_ms: float
    noise_ms: float
    runs: int
    padded: tuple[Padded, ...] = ()
    why_not_padded: str = ""
    interrupted: bool = False
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
