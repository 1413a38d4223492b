"""Where to compute, and in which precision."""

import contextlib

import torch
from torch import nn

from polarprune.errors import BackendUnavailable
from polarprune.option_values import check_choice


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one.

    Raises:
        BackendUnavailable: CUDA is asked for and not there.
        ConfigError: an unknown name.
    """
    check_choice("--device", name, ("auto", "cpu", "cuda"))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable("--device cuda is not available here; use --device cpu")
    return torch.device(name)


def choose_bf16(precision: str, device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast; "auto" does so where it is fast.

    Decided by what the CPU can do, not by a trial. Without AVX-512 or AMX bfloat16 is emulated: a
    training step of ResNet-20 took about 11 times as long as in float32 on an AVX2 machine. No
    other CPU was measured.

    Raises:
        ConfigError: an unknown precision.
    """
    check_choice("--precision", precision, ("auto", "fp32", "bf16"))
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[object]:
    """The autocast context of a forward pass."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def fast_layout(net: nn.Module, device: torch.device) -> torch.memory_format:
    """The memory layout in which this network's convolutions are fast.

    Channels last, except on a CPU where a convolution's channel counts are no multiples of 16, the
    width of its vectors: oneDNN then pads blocks of its own, and channels last is what is slow. A
    training step of ResNet-20 with (11, 23, 45) channels a stage took 2.29 times as long in
    channels last under bfloat16 and 1.45 times in float32; with its own (16, 32, 64) channels 0.85
    and 0.84 times (batch 128, 2 cores with AVX-512 and AMX, benchmarks/results/layout_speed.json).
    The rule is coarse: with (16, 24, 48) it chooses the slower one, by 2 % and by 19 %.
    """
    if device.type != "cpu":
        return torch.channels_last
    counts = {
        count
        for module in net.modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1
        for count in (module.in_channels, module.out_channels)
        if count > 4  # images have few, and no network changes that
    }
    ragged = any(count % 16 for count in counts)
    return torch.contiguous_format if ragged else torch.channels_last
