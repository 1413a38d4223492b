"""Warm or cold: what a run finds in the caches.

Warm: the same buffers run after run, an untimed run before each block. Cold: before each timed run,
outside of what is timed, a buffer is written that is larger than twice the last cache.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polarprune_deploy.backends.runners import DeviceTimed, PreparedRun

CACHES = ("warm", "cold")

CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# A virtual machine may report the whole host's cache, of which it has a share.
LARGEST_CPU_BUFFER = 256 << 20
UNKNOWN_CPU_CACHE = 32 << 20
# What Triton's do_bench writes; twice an H200's 60 MB fits.
LEAST_GPU_BUFFER = 256 << 20


class Eviction(Protocol):
    """Fills the caches with something else."""

    @property
    def written(self) -> int:
        """Bytes that one eviction writes."""
        ...

    def before(self, call: PreparedRun) -> None:
        """Evict; complete when it returns."""
        ...

    def enqueue(self, call: DeviceTimed) -> None:
        """Queue an eviction on the stream of the call."""
        ...


@dataclass
class CpuEviction:
    """Writes main memory."""

    buffer: np.ndarray[Any, np.dtype[np.uint8]]
    _value: int = 0

    @property
    def written(self) -> int:
        """Bytes that one eviction writes."""
        return self.buffer.nbytes

    def before(self, call: PreparedRun) -> None:
        """Write every byte, each time another value."""
        self._value = (self._value + 1) % 256
        self.buffer.fill(self._value)

    def enqueue(self, call: DeviceTimed) -> None:
        """A CPU has no queue."""
        self.before(call)


class GpuEviction:
    """Writes memory of the GPU that torch calls current, on the stream of what runs next."""

    def __init__(self) -> None:
        """Allocate."""
        import torch

        self._torch = torch
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.written = max(2 * int(properties.L2_cache_size) + 1, LEAST_GPU_BUFFER)
        self._buffer = torch.empty(self.written, dtype=torch.uint8, device="cuda")

    def before(self, call: PreparedRun) -> None:
        """Write, and wait for it."""
        self._buffer.zero_()
        self._torch.cuda.synchronize()

    def enqueue(self, call: DeviceTimed) -> None:
        """Write in front of the next run, behind the last one."""
        with self._torch.cuda.stream(call.stream):
            self._buffer.zero_()


def eviction_for(cache: str, device: str) -> Eviction | None:
    """What makes runs cold; None for warm ones."""
    if cache == "warm":
        return None
    if device == "cuda":
        return GpuEviction()
    size = min(2 * last_cache_bytes(CPU_CACHES) + 1, LARGEST_CPU_BUFFER)
    return CpuEviction(np.zeros(size, np.uint8))


def last_cache_bytes(folder: Path) -> int:
    """Bytes of the largest cache that the kernel lists for one CPU.

    >>> last_cache_bytes(Path("/nowhere")) == 32 << 20
    True
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for file in folder.glob("index*/size"):
        text = file.read_text().strip()
        number, unit = text.rstrip("KMG"), text[-1:]
        if number.isdigit():
            sizes.append(int(number) * units.get(unit, 1))
    return max(sizes, default=UNKNOWN_CPU_CACHE)
