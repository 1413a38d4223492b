"""Where to compute, and in which precision."""

import contextlib

import torch

from polarprune.errors import BackendUnavailable, ConfigError


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one.

    Raises:
        BackendUnavailable: CUDA is asked for and not there.
        ConfigError: an unknown name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is unknown; choose one of: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable("device cuda is not available here; use --device cpu")
    return torch.device(name)


def choose_bf16(precision: str, device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast; "auto" does so where it is fast.

    Decided by what the CPU can do, not by a trial. Without AVX-512 or AMX bfloat16 is emulated: a
    training step of ResNet-20 took about 11 times as long as in float32 on an AVX2 machine. No
    other CPU was measured.

    Raises:
        ConfigError: an unknown precision.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision {precision!r} is unknown; choose one of: auto, fp32, bf16")
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[object]:
    """The autocast context of a forward pass."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
