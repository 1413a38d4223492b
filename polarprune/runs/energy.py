"""What training costs in joules, where NVML can tell."""

import math

import torch

from polarprune.errors import BackendUnavailable
from polarprune.runs.ranks import sum_over_ranks


class GpuEnergy:
    """Energy that one GPU has taken since this was made, whoever used it."""

    def __init__(self, uuid: str) -> None:
        """Open NVML and read the counter.

        Args:
            uuid: torch's name of the GPU: its index need not be NVML's.

        Raises:
            BackendUnavailable: no NVML, or a GPU that does not count (before Volta).
        """
        try:
            import pynvml
        except ImportError as error:
            raise BackendUnavailable(
                "joules need nvidia-ml-py: pip install 'polarprune[gpu]'"
            ) from error
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self._start = self._millijoules()
        except pynvml.NVMLError as error:
            raise BackendUnavailable(f"NVML does not tell the energy of GPU {uuid}") from error

    def _millijoules(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def joules(self) -> float:
        """Since the start."""
        return (self._millijoules() - self._start) / 1000


def gpu_energy(device: torch.device) -> GpuEnergy | None:
    """The meter of the GPU that is trained on; None where there is none."""
    if device.type != "cuda":
        return None
    try:
        return GpuEnergy(str(torch.cuda.get_device_properties(device).uuid))
    except BackendUnavailable:
        return None


def joules_of_all_ranks(
    energy: GpuEnergy | None, device: torch.device, earlier: float
) -> float | None:
    """What all ranks' GPUs have taken, joules, with what a run took before; every rank must ask."""
    if device.type != "cuda":
        return None
    own = float("nan") if energy is None else energy.joules()
    total = earlier + sum_over_ranks(own, device)
    return None if math.isnan(total) else round(total, 1)
