"""How far from its builder's version and GPU an enterprise engine may run.

By default an engine runs with the TensorRT that built it, on that GPU model. Each widening costs
some speed (NVIDIA's words; not measured by us).
"""

from typing import Any

from polarprune.errors import Refused
from polarprune.option_values import check_choice

COMPATIBILITIES = ("none", "version", "ampere+", "same-cc")
"""Nothing; later TensorRT of the same major; every GPU from 8.0 on; the same compute capability."""

_LEVELS = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}


def check_compatibility(compatibility: str) -> None:
    """Refuses a word that is not one of `COMPATIBILITIES`.

    Raises:
        ConfigError: it is not.
    """
    check_choice("--engine-compat", compatibility, COMPATIBILITIES)


def set_compatibility(trt: Any, runtime: str, config: Any, compatibility: str) -> None:
    """Sets the builder's flag or level.

    Raises:
        Refused: this package cannot do it.
    """
    if compatibility == "none":
        return
    if runtime == "tensorrt_rtx":
        # Measured with 1.7: a version-compatible build fails for want of libnvinfer_lean, and the
        # hardware level is answered with a warning and ignored.
        raise Refused(
            f"--engine-compat {compatibility} is not for TensorRT-RTX: its engines are compiled on "
            "the card where they are loaded and are built anew for each release; leave it out and "
            "choose cards with --gpu"
        )
    if compatibility == "version":
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        return
    level = getattr(trt.HardwareCompatibilityLevel, _LEVELS[compatibility], None)
    if level is None:
        raise Refused(
            f"TensorRT {trt.__version__} has no --engine-compat {compatibility}; install a newer "
            "one or choose another"
        )
    config.hardware_compatibility_level = level


def describe_reach(compatibility: str, version: str, gpu: str, capability: str) -> str:
    """Where an enterprise engine runs, in words."""
    release = f"TensorRT {version}"
    if compatibility == "version":
        release += f" and later {version.split('.')[0]}.x"
    place = {
        "ampere+": "GPUs of compute capability 8.0 and newer",
        "same-cc": f"GPUs of compute capability {capability}",
    }.get(compatibility, f"{gpu} (compute capability {capability})")
    return f"{place} with {release}"
