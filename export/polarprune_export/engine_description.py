"""The manifest's entry of an engine: where it runs, what it takes, what it was built from."""

import hashlib
import json
from importlib import import_module
from typing import Any

from polarprune.manifest import BatchProfile, EngineInfo, TensorSpec
from polarprune_export.engine_compatibility import describe_reach


def describe_engine(
    trt: Any,
    runtime: str,
    network: Any,
    *,
    file: str,
    onnx_sha256: str,
    profiles: tuple[BatchProfile, ...],
    targets: tuple[str, ...],
    compatibility: str,
) -> EngineInfo:
    """The entry; shapes come from the network, as an engine needs a GPU to be asked."""
    gpu = driver = None
    version = str(trt.__version__)
    if runtime == "tensorrt_rtx":
        release = ".".join(version.split(".")[:2])
        runs_on = (
            f"GeForce/RTX cards of compute capability {', '.join(targets)} "
            f"(TensorRT-RTX {release}); not A100/H100, not a Triton plan"
        )
    else:
        import torch

        name = torch.cuda.get_device_name()
        driver = _driver()
        gpu = name if compatibility in ("none", "version") else None
        runs_on = describe_reach(compatibility, version, name, targets[0])
    flags = () if compatibility == "none" else (compatibility,)
    return EngineInfo(
        file=file,
        runtime=runtime,
        version=version,
        runs_on=runs_on,
        compute_capabilities=targets,
        profiles=profiles,
        inputs=tuple(_spec(trt, network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_spec(trt, network.get_output(i)) for i in range(network.num_outputs)),
        gpu=gpu,
        driver=driver,
        flags=flags,
        fingerprint=engine_fingerprint(onnx_sha256, runtime, version, profiles, targets, flags),
    )


def engine_fingerprint(
    onnx_sha256: str,
    runtime: str,
    version: str,
    profiles: tuple[BatchProfile, ...],
    targets: tuple[str, ...],
    flags: tuple[str, ...],
) -> str:
    """What an engine was built from, sha256 in hex; equal for builds that may stand for each other.

    The engine's own digest says nothing of the kind: two builds of one graph differ in some bytes.
    """
    parts = {
        "onnx": onnx_sha256,
        "builder": [runtime, version],
        "profiles": [[profile.min, profile.opt, profile.max] for profile in profiles],
        "targets": list(targets),
        "flags": list(flags),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint_of(info: EngineInfo, onnx_sha256: str) -> str:
    """The fingerprint that this entry has if the engine was built from an ONNX of this digest."""
    return engine_fingerprint(
        onnx_sha256,
        info.runtime,
        info.version,
        info.profiles,
        info.compute_capabilities,
        info.flags,
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
