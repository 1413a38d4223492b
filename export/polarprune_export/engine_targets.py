"""Which GPU generations an engine is built for.

TensorRT-RTX builds for any list of those it knows, on any machine; enterprise TensorRT for the GPU
that it builds on, and no other.
"""

from collections.abc import Sequence
from typing import Any

from polarprune.errors import ConfigError, Refused

# NVIDIA's support matrix for TensorRT-RTX from 1.5 on; 7.5 only runs fp16, and 8.0 and 9.0 (A100,
# H100) are in no release's matrix, although 1.7 has a name for 8.0.
RTX_TARGETS = {"SM86": "8.6", "SM89": "8.9", "SM120": "12.0", "SM121": "12.1"}


def parse_targets(values: Sequence[str]) -> tuple[str, ...]:
    """Compute capabilities as the command line gives them, one or several a value.

    Raises:
        ConfigError: an empty one.

    >>> parse_targets(["8.9", "8.6,12.0", "8.9"])
    ('8.9', '8.6', '12.0')
    """
    targets = [part.strip() for value in values for part in value.split(",")]
    if not all(targets):
        raise ConfigError(
            f"--gpu must be compute capabilities with commas, as 8.6,8.9, got "
            f"{', '.join(map(repr, values))}"
        )
    return tuple(dict.fromkeys(targets))


def choose_targets(
    trt: Any, runtime: str, config: Any, targets: Sequence[str] | None
) -> tuple[str, ...]:
    """Sets what the engine is built for and returns it; None takes all that is possible.

    Raises:
        Refused: a target that this builder cannot build for; those that it can are listed.
    """
    if runtime == "tensorrt_rtx":
        return _choose_rtx(trt, config, targets)
    own = own_capability()
    foreign = [target for target in targets or () if target != own]
    if foreign:
        raise Refused(
            f"enterprise TensorRT builds only for the GPU of this machine, {own}, got "
            f"{', '.join(foreign)}; build on such a GPU, or with TensorRT-RTX, which builds for "
            f"{', '.join(RTX_TARGETS.values())} anywhere: build_engine(..., runtime='tensorrt_rtx')"
        )
    return (own,)


def own_capability() -> str:
    """The compute capability of this machine's GPU, as "8.9"."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def _choose_rtx(trt: Any, config: Any, targets: Sequence[str] | None) -> tuple[str, ...]:
    known = {
        capability: name
        for name, capability in RTX_TARGETS.items()
        if hasattr(trt.ComputeCapability, name)
    }
    wanted = tuple(known if targets is None else targets)
    unknown = [target for target in wanted if target not in known]
    if unknown or not wanted:
        raise Refused(
            f"TensorRT-RTX {trt.__version__} cannot build for --gpu {', '.join(unknown) or 'none'}"
            f"; it builds for {', '.join(known)}"
        )
    config.num_compute_capabilities = len(wanted)
    for i, capability in enumerate(wanted):
        config.set_compute_capability(getattr(trt.ComputeCapability, known[capability]), i)
    return wanted
