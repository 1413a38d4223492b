"""One engine builder for TensorRT 10.12+, TensorRT 11 and TensorRT-RTX.

The three share an interface apart from names that come and go, so nothing here asks for a version:
it asks which of the two packages was imported, and what that package has. Precision is a property
of the ONNX graph (the network is strongly typed). TensorRT-RTX builds without a GPU and its engine
is compiled for the card where it is loaded; enterprise TensorRT builds on, and for, one GPU.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from polarprune.errors import BackendUnavailable, ConfigError, Refused
from polarprune.manifest import BatchProfile, EngineInfo, TensorSpec

RUNTIMES = ("tensorrt", "tensorrt_rtx")
INSTALL = {"tensorrt": "pip install polarprune[gpu]", "tensorrt_rtx": "pip install polarprune[rtx]"}

# NVIDIA's support matrix for TensorRT-RTX from 1.5 on; 7.5 only runs fp16, and 8.0 and 9.0 (A100,
# H100) are in no release's matrix, although 1.7 has a name for 8.0.
RTX_TARGETS = {"SM86": "8.6", "SM89": "8.9", "SM120": "12.0", "SM121": "12.1"}

WORKSPACE_BYTES = 1 << 30
"""An upper bound for scratch memory; networks of this size use a few MB of it."""

LOG_LINES = 12
"""How many of the last log lines an error quotes."""

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many steps of it are done, and how many there are."""


@dataclass(frozen=True)
class EngineReport:
    """What was built; `info` is the manifest's entry."""

    path: Path
    bytes: int
    info: EngineInfo

    @property
    def runs_on(self) -> str:
        """Where the engine will run, in words."""
        return self.info.runs_on


def build_engine(
    onnx_path: Path | str,
    *,
    out_path: Path | str,
    batch: tuple[int, int, int] = (1, 8, 64),
    runtime: str = "auto",
    progress: Progress | None = None,
) -> EngineReport:
    """Builds the engine of an ONNX file and writes it whole or not at all.

    Args:
        batch: smallest, tuned and largest batch size; a batch of one gets a profile of its own.
        runtime: "tensorrt", "tensorrt_rtx", or "auto": enterprise TensorRT where it is installed
            and a GPU is here, else TensorRT-RTX.

    Raises:
        BackendUnavailable: the package (or the GPU that it needs) is not here.
        Refused: the graph was not accepted or not built; the builder's log lines are quoted.
    """
    profiles = batch_profiles(batch)
    name, trt = _import_runtime(runtime)
    logger, lines = _collecting_logger(trt)
    builder = trt.Builder(logger)
    network = _parse(trt, builder, logger, lines, Path(onnx_path))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    profiles = _add_profiles(builder, network, config, profiles)
    targets = _choose_targets(trt, config) if name == "tensorrt_rtx" else ()
    if progress is not None:
        config.progress_monitor = _progress_monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused(f"{name} {trt.__version__} did not build {onnx_path}: {_quote(lines)}")
    content = bytes(plan)
    out_path = Path(out_path)
    partial = out_path.with_name(f".{out_path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, out_path)
    finally:
        partial.unlink(missing_ok=True)
    info = _describe(trt, name, network, out_path.name, targets, profiles)
    return EngineReport(out_path, len(content), info)


def batch_profiles(batch: tuple[int, int, int]) -> tuple[BatchProfile, ...]:
    """One profile for a batch of one, where that is in the range, and one for the whole range.

    Raises:
        ConfigError: not 1 <= smallest <= tuned <= largest.
    """
    low, opt, high = batch
    if not 1 <= low <= opt <= high:
        raise ConfigError(
            f"the batch profile is {low}:{opt}:{high}; "
            "it must be MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX"
        )
    whole = BatchProfile(low, opt, high)
    one = BatchProfile(1, 1, 1)
    return (one, whole) if low == 1 < high else (whole,)


def _import_runtime(runtime: str) -> tuple[str, Any]:
    """The name and the module of the runtime that builds."""
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
            reasons.append(f"{name} cannot be imported ({why}); `{INSTALL[name]}` installs it")
    raise BackendUnavailable(f"no TensorRT to build with: {'; '.join(reasons)}")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _collecting_logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger that keeps warnings and worse: why a build failed is said nowhere else."""
    lines: list[str] = []

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                lines.append(" ".join(message.split()))

    return CollectingLogger(), lines


def _quote(lines: list[str]) -> str:
    return " | ".join(lines[-LOG_LINES:]) or "the builder logged no reason"


def _parse(trt: Any, builder: Any, logger: Any, lines: list[str], onnx_path: Path) -> Any:
    flags = trt.NetworkDefinitionCreationFlag
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        words = [f"{' '.join(e.desc().split())} (node {e.node_name()!r})" for e in errors]
        raise Refused(
            f"{trt.__name__} {trt.__version__} cannot read {onnx_path}: "
            f"{'; '.join(words) or 'no error given'}; log: {_quote(lines)}"
        )
    return network


def _add_profiles(
    builder: Any, network: Any, config: Any, profiles: tuple[BatchProfile, ...]
) -> tuple[BatchProfile, ...]:
    """Adds the profiles, or returns the one that a graph with a fixed batch size has."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if all(size >= 0 for tensor in inputs for size in tensor.shape):
        fixed = int(inputs[0].shape[0])
        return (BatchProfile(fixed, fixed, fixed),)
    for batch in profiles:
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            sizes = tuple(tensor.shape)[1:]
            profile.set_shape(
                tensor.name, (batch.min, *sizes), (batch.opt, *sizes), (batch.max, *sizes)
            )
        config.add_optimization_profile(profile)
    return profiles


def _choose_targets(trt: Any, config: Any) -> tuple[str, ...]:
    names = [name for name in RTX_TARGETS if hasattr(trt.ComputeCapability, name)]
    config.num_compute_capabilities = len(names)
    for i, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    return tuple(RTX_TARGETS[name] for name in names)


def _progress_monitor(trt: Any, progress: Progress) -> Any:
    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            self.steps[phase] = num_steps
            progress(phase, 0, num_steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, step + 1, self.steps[phase])
            return True  # False would cancel the build

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.pop(phase)
            progress(phase, steps, steps)

    return ProgressMonitor()


def _describe(
    trt: Any,
    name: str,
    network: Any,
    file: str,
    targets: tuple[str, ...],
    profiles: tuple[BatchProfile, ...],
) -> EngineInfo:
    """The manifest's entry; shapes come from the network, as an engine needs a GPU to be asked."""
    gpu = driver = None
    if name == "tensorrt_rtx":
        release = ".".join(trt.__version__.split(".")[:2])
        runs_on = (
            f"GeForce/RTX cards of compute capability {', '.join(targets)} "
            f"(TensorRT-RTX {release}); not A100/H100, not a Triton plan"
        )
    else:
        import torch

        major, minor = torch.cuda.get_device_capability()
        targets, gpu, driver = (f"{major}.{minor}",), torch.cuda.get_device_name(), _driver()
        runs_on = f"{gpu} (compute capability {targets[0]}) with TensorRT {trt.__version__}"
    return EngineInfo(
        file=file,
        runtime=name,
        version=str(trt.__version__),
        runs_on=runs_on,
        compute_capabilities=targets,
        profiles=profiles,
        inputs=tuple(_spec(trt, network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_spec(trt, network.get_output(i)) for i in range(network.num_outputs)),
        gpu=gpu,
        driver=driver,
    )


def _spec(trt: Any, tensor: Any) -> TensorSpec:
    import numpy as np

    dtype = "bfloat16" if tensor.dtype == trt.bfloat16 else np.dtype(trt.nptype(tensor.dtype)).name
    return TensorSpec(tensor.name, dtype, tuple(int(size) for size in tensor.shape))


def _driver() -> str | None:
    """The NVIDIA driver's version, where nvidia-ml-py can tell."""
    try:
        pynvml = import_module("pynvml")
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # no driver, or no package: the manifest then says null
        return None
    return version.decode() if isinstance(version, bytes) else str(version)
