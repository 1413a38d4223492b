"""From what a user names to a runner of the backend that was asked for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polarprune.errors import BackendUnavailable, ConfigError
from polarprune.manifest import is_bundle
from polarprune.option_values import check_choice, check_range
from polarprune.optional_packages import import_package
from polarprune.runs.run_folder import RUN_FILE, RunFolder
from polarprune_deploy.backends.network_bytes import (
    EngineBytes,
    NetworkBytes,
    no_signature,
    read_engine,
    read_network,
)
from polarprune_deploy.backends.runners import Runner

BACKENDS = ("auto", "torch", "onnxruntime", "tensorrt", "tensorrt_rtx")
DEVICES = ("cpu", "cuda")
MODES = ("eager", "graph", "compile", "compile-graph")
PRECISIONS = ("fp32", "fp16", "bf16")
ENGINE_BACKENDS = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class How:
    """How networks are run; the same for both sides of a comparison.

    Attributes:
        backend: one of `BACKENDS`; "auto" is onnxruntime.
        device: "cpu" or "cuda".
        threads: threads inside one operator; None takes every CPU the process may use.
        mode: "eager"; "graph", a CUDA graph, of torch and the TensorRTs; "compile" and
            "compile-graph", of torch.
        precision: of torch alone, None for fp32; elsewhere it is a property of the exported graph.
    """

    backend: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    mode: str = "eager"
    precision: str | None = None

    @property
    def runtime(self) -> str:
        """The backend, with "auto" resolved."""
        return "onnxruntime" if self.backend == "auto" else self.backend


def check_how(how: How) -> None:
    """Refuse, before any work is done, what could not run in the end.

    Raises:
        ConfigError: a word or number out of range, or words that do not go together.
        BackendUnavailable: a library or device that is not here.
    """
    for option, value, allowed in (
        ("--backend", how.backend, BACKENDS),
        ("--device", how.device, DEVICES),
        ("--mode", how.mode, MODES),
        ("--precision", how.precision or "fp32", PRECISIONS),
    ):
        check_choice(option, value, allowed)
    check_range("--threads", how.threads, 1)
    runtime = how.runtime
    if how.precision is not None and runtime != "torch":
        raise ConfigError(
            f"--precision is for --backend torch; what {runtime} runs has the precision that it "
            "was exported in: polarprune export --precision"
        )
    if "compile" in how.mode and runtime != "torch":
        raise ConfigError(f"--mode {how.mode} is for --backend torch, got --backend {runtime}")
    if "graph" in how.mode and (runtime == "onnxruntime" or how.device != "cuda"):
        raise ConfigError(
            f"--mode {how.mode} records a CUDA graph; give --device cuda and --backend torch, "
            "tensorrt or tensorrt_rtx"
        )
    if runtime in ENGINE_BACKENDS:
        if how.device != "cuda":
            raise ConfigError(f"--backend {runtime} runs on GPUs alone; give --device cuda")
        import_engine_runtime(runtime)
    if runtime in ("torch", *ENGINE_BACKENDS) and how.device == "cuda":
        require_gpu("--device cpu" if runtime == "torch" else "--backend onnxruntime")


def import_engine_runtime(runtime: str) -> Any:
    """The module of TensorRT or TensorRT-RTX.

    Raises:
        BackendUnavailable: it is not here, or its libraries are not.
    """
    from polarprune_export.engine_runtime import INSTALL

    return import_package(runtime, INSTALL[runtime])


def require_gpu(otherwise: str) -> None:
    """Raise unless torch sees a GPU.

    Args:
        otherwise: the option that does without one.

    Raises:
        BackendUnavailable: it does not.
    """
    import torch

    if not torch.cuda.is_available():
        raise BackendUnavailable(f"no GPU is here that torch can use; use {otherwise}")


def load_runner(
    path: Path | str,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    public_key: Path | str | None = None,
    *,
    mode: str = "eager",
    precision: str | None = None,
    name: str | None = None,
) -> Runner:
    """Load a network from disk.

    Args:
        path: for onnxruntime a bundle, or a plain ONNX file, which no manifest vouches for; for
            tensorrt and tensorrt_rtx a bundle with an engine; for torch a run folder or what
            `polarprune.save_network` wrote.
        backend: "auto" (onnxruntime), "torch", "onnxruntime", "tensorrt" or "tensorrt_rtx".
        device: "cpu" or "cuda".
        threads: threads inside one operator; None takes every CPU the process may use.
        public_key: a PEM file; the bundle must be signed by this ed25519 key.
        mode: one of `MODES`, see `How`.
        precision: of torch, None for fp32.
        name: what to call it; None takes the manifest's name or the file's.

    Raises:
        BundleError: a file that differs from the manifest, a graph that is not safe to load, or
            with a key a signature that does not hold; no runtime has seen anything then.
        BackendUnavailable: a backend or device that is not here.
        ConfigError: a name or number out of range.
    """
    how = How(backend, device, threads, mode, precision)
    check_how(how)
    path = Path(path)
    if how.runtime == "torch":
        return _load_torch(path, how, public_key, name)
    if how.runtime in ENGINE_BACKENDS:
        engine = read_engine(path, how.runtime, public_key)
        return engine_runner(engine if name is None else replace(engine, name=name), how)
    network = read_network(path, public_key)
    return onnx_runner(network if name is None else replace(network, name=name), how)


def onnx_runner(network: NetworkBytes, how: How, *, spinning: bool = True) -> Runner:
    """ONNX Runtime over verified bytes; `spinning` as for `OnnxRuntimeRunner`."""
    from polarprune_deploy.backends.runner_onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(network, device=how.device, threads=how.threads, spinning=spinning)


def engine_runner(engine: EngineBytes, how: How) -> Runner:
    """TensorRT or TensorRT-RTX over a verified engine."""
    from polarprune_deploy.backends.runner_tensorrt import TensorRtRunner

    return TensorRtRunner(engine, import_engine_runtime(engine.runtime), mode=how.mode)


def refuse_onnx(path: Path) -> None:
    """Refuse what torch does not run.

    Raises:
        ConfigError: a bundle or an ONNX file.
    """
    if is_bundle(path) or path.suffix == ".onnx":
        raise ConfigError(
            f"{path} holds ONNX, which torch does not run; use --backend onnxruntime, or name the "
            "run or model that it was exported from"
        )


def _load_torch(path: Path, how: How, public_key: Path | str | None, name: str | None) -> Runner:
    refuse_onnx(path)
    if public_key is not None:
        raise no_signature(path, public_key)
    from polarprune.network_files import image_shape, is_network_folder, load_network
    from polarprune_deploy.backends.runner_torch import TorchRunner

    shape: tuple[int, ...]
    if (path / RUN_FILE).is_file():
        run = RunFolder(path)
        network, shape = run.pruned_network(), run.input_shape
    elif is_network_folder(path):
        network = load_network(path)
        shape = image_shape(network)
    else:
        raise ConfigError(
            f"{path} is neither a run folder nor a saved network; give one, or use "
            "--backend onnxruntime for a bundle"
        )
    return TorchRunner(
        network, shape, name=name or path.name, device=how.device, mode=how.mode,
        precision=how.precision or "fp32", threads=how.threads,
    )  # fmt: skip
