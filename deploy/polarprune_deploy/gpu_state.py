"""What a GPU was doing while it was measured, by NVML: read and judged, never set."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

# Bits of nvmlClocksEventReasons, from nvml.h; they do not change between drivers.
REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "synchronised with other GPUs",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}
HARMLESS = {"idle", "application clocks"}

CLOCK_TOLERANCE = 0.02
"""How far the SM clock may move while rounds are timed."""


@dataclass(frozen=True)
class GpuState:
    """One look at the GPU; what it does not tell is None. `reasons`: why the clock is no higher."""

    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    reasons: tuple[str, ...]

    @property
    def idle(self) -> bool:
        """Whether the clock is down for want of work."""
        return "idle" in self.reasons


@dataclass(frozen=True)
class GpuReport:
    """Before, after and between the timed rounds; `processes` are the others' too, by number."""

    name: str
    uuid: str
    driver: str
    processes: tuple[int, ...]
    before: GpuState
    during: tuple[GpuState, ...]
    after: GpuState

    def throttled(self) -> str | None:
        """Why the timed rounds were not run at one clock; None where they were."""
        limited = {r for state in self.during for r in state.reasons} - HARMLESS
        if limited:
            return f"the GPU held its clock back ({', '.join(sorted(limited))})"
        clocks = [state.sm_mhz for state in self.during if state.sm_mhz]
        if clocks and max(clocks) > (1.0 + CLOCK_TOLERANCE) * min(clocks):
            return f"the SM clock moved from {min(clocks)} to {max(clocks)} MHz"
        return None

    def as_dict(self) -> dict[str, object]:
        """For a record."""
        return asdict(self)


class GpuMonitor:
    """One GPU's NVML handle."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        """Open it.

        Args:
            nvml: the module `pynvml`.
            uuid: torch's name of the GPU: its index need not be NVML's.
        """
        self._nvml = nvml
        nvml.nvmlInit()
        self._handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self.uuid = uuid
        self.name = _text(nvml.nvmlDeviceGetName(self._handle))
        self.driver = _text(nvml.nvmlSystemGetDriverVersion())
        # The old name for drivers and modules from before 535.
        self._reasons = getattr(
            nvml,
            "nvmlDeviceGetCurrentClocksEventReasons",
            getattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None),
        )

    def look(self) -> GpuState:
        """The state now; some hundred microseconds."""
        nvml, handle = self._nvml, self._handle
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage)
        bits = 0 if self._reasons is None else self._ask(self._reasons) or 0
        return GpuState(
            sm_mhz=self._ask(lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM)),
            memory_mhz=self._ask(lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_MEM)),
            temperature_c=self._ask(
                lambda _: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            power_w=None if milliwatts is None else milliwatts / 1000,
            reasons=tuple(word for bit, word in REASONS.items() if bits & bit),
        )

    def processes(self) -> tuple[int, ...]:
        """Numbers of the processes that compute on it, as NVML sees them."""
        found = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses) or ()
        return tuple(sorted(int(process.pid) for process in found))

    def report(self, before: GpuState, during: Sequence[GpuState]) -> GpuReport:
        """What was seen, with a last look."""
        return GpuReport(
            self.name, self.uuid, self.driver, self.processes(), before, tuple(during), self.look()
        )

    def _ask(self, question: Any) -> Any:
        """An answer, or None where this GPU has none to give."""
        try:
            return question(self._handle)
        except self._nvml.NVMLError:
            return None


def gpu_monitor(device: str) -> GpuMonitor | None:
    """The monitor of the GPU that torch calls current; None on a CPU, or without NVML."""
    if device != "cuda":
        return None
    try:
        import torch

        nvml = import_module("pynvml")
        if not torch.cuda.is_available():
            return None
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    except ImportError:
        return None
    try:
        return GpuMonitor(nvml, uuid)
    except nvml.NVMLError:
        return None


def _text(value: object) -> str:
    """NVML's older modules answer in bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
