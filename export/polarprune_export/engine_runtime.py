"""Which TensorRT builds: enterprise TensorRT on a GPU, or TensorRT-RTX anywhere; and what it logs.

The packages share an interface apart from names that come and go, so nothing asks for a version:
the builder asks which of the two was imported, and what that package has.
"""

from importlib import import_module
from typing import Any

from polarprune.errors import BackendUnavailable, ConfigError

RUNTIMES = ("tensorrt", "tensorrt_rtx")
INSTALL = {
    "tensorrt": "pip install 'polarprune[gpu]'",
    "tensorrt_rtx": "pip install 'polarprune[rtx]'",
}

LOG_LINES = 12
"""How many of the last log lines an error quotes."""


def import_runtime(runtime: str) -> tuple[str, Any]:
    """The name and the module of the runtime that builds.

    Args:
        runtime: "tensorrt", "tensorrt_rtx", or "auto": enterprise TensorRT where it is installed
            and a GPU is here, else TensorRT-RTX.

    Raises:
        ConfigError: another name.
        BackendUnavailable: the package, or the GPU that it needs, is not here.
    """
    if runtime not in ("auto", *RUNTIMES):
        raise ConfigError(f"unknown runtime {runtime!r}; it is auto, {' or '.join(RUNTIMES)}")
    wanted = RUNTIMES if runtime == "auto" else (runtime,)
    reasons = []
    for name in wanted:
        if name == "tensorrt" and not _has_gpu():
            reasons.append("tensorrt builds on a GPU and none is here")
            continue
        try:
            return name, import_module(name)
        except (ImportError, OSError) as error:  # bindings without libraries raise OSError
            why = (str(error).splitlines() or ["no reason given"])[0]
            reasons.append(f"{name} cannot be imported ({why}); run: {INSTALL[name]}")
    raise BackendUnavailable(f"no TensorRT to build with: {'; '.join(reasons)}")


def collecting_logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger that keeps warnings and worse: why a build failed is said nowhere else."""
    lines: list[str] = []

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                lines.append(" ".join(message.split()))

    return CollectingLogger(), lines


def quote_log(lines: list[str]) -> str:
    """The end of the log in one line."""
    return " | ".join(lines[-LOG_LINES:]) or "the builder logged no reason"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
