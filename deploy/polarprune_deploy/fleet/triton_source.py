"""Which file of a bundle Triton is to run, and what it takes.

An enterprise TensorRT engine is what Triton calls a plan. A TensorRT-RTX engine is not: Triton's
TensorRT backend cannot load it, so the bundle's ONNX file goes to the ONNX Runtime backend then.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from polarprune.errors import ConfigError
from polarprune.manifest import BatchProfile, EngineInfo, Manifest, TensorSpec, read_verified
from polarprune.option_values import check_choice

if TYPE_CHECKING:
    from polarprune_export.bundle_reading import BundleModel

BACKENDS = ("auto", "onnxruntime", "tensorrt")
DEVICES = ("auto", "cpu", "cuda")

ONNX_FILE, PLAN_FILE = "model.onnx", "model.plan"
"""The names under which Triton's backends look for them."""

NOT_A_PLAN = (
    "The bundle's engine is TensorRT-RTX's, which is not a Triton plan: Triton cannot load it."
)
VERSION_COMPATIBLE = "version"
"""The engine's flag that lets later releases of TensorRT's major load it."""


@dataclass(frozen=True)
class TritonSource:
    """A file for Triton: `content` are verified bytes, `remarks` what its user must know.

    `backend` is "onnxruntime" or "tensorrt", `device` "auto" (a GPU where there is one), "cpu" or
    "cuda".
    """

    backend: str
    device: str
    content: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[BatchProfile, ...]
    runs_on: str
    remarks: tuple[str, ...]

    @property
    def file(self) -> str:
        """What the file is called in a version's folder."""
        return ONNX_FILE if self.backend == "onnxruntime" else PLAN_FILE

    @property
    def batched(self) -> bool:
        """Whether every tensor has a free first axis, so that Triton can join requests."""
        return all(t.shape[:1] == (-1,) for t in (*self.inputs, *self.outputs))


def choose_source(
    folder: Path, read: "BundleModel", backend: str, device: str, accelerate: bool
) -> TritonSource:
    """The file that runs with what was asked for.

    Args:
        folder: the bundle.
        read: what was read of it.
        backend: one of `BACKENDS`; "auto" takes a plan where there is one.
        device: one of `DEVICES`.
        accelerate: let ONNX Runtime build a TensorRT engine when Triton loads the model.

    Raises:
        ConfigError: words that do not go together or do not go with this bundle.
        BundleError: the engine is not what the manifest says.
    """
    check_choice("--backend", backend, BACKENDS)
    check_choice("--device", device, DEVICES)
    engine = read.manifest.engine
    is_plan = engine is not None and engine.runtime == "tensorrt"
    if backend == "tensorrt" and not is_plan:
        why = "has no engine" if engine is None else f"has one for {engine.runtime} alone"
        raise ConfigError(
            f"--backend tensorrt runs an enterprise TensorRT engine, and this bundle {why}; "
            "leave --backend out to have its ONNX file served"
        )
    if engine is not None and is_plan and backend != "onnxruntime":
        source = _plan(folder, read.manifest, engine, device, accelerate)
    else:
        source = _onnx(read, device, accelerate)
    return replace(source, remarks=(*source.remarks, *_batch_remarks(source)))


def _batch_remarks(source: TritonSource) -> list[str]:
    """What Triton cannot do about batches."""
    smallest = min(profile.min for profile in source.profiles)
    if source.batched:
        if source.backend == "tensorrt" and smallest > 1:
            return [
                f"The plan takes {smallest} images or more, and Triton fills nothing up: smaller "
                "batches fail."
            ]
        return []
    sizes = {tensor.shape[:1] for tensor in source.inputs}
    if len(sizes) == 1 and (size := sizes.pop()) and size[0] > 0:
        images = "one image" if size[0] == 1 else f"{size[0]} images, no more and no fewer"
        return [f"A request must hold {images}: that is fixed in the file, so Triton joins none."]
    return ["Triton joins no requests: not every input and output has a free first axis."]


def _plan(
    folder: Path, manifest: Manifest, engine: EngineInfo, device: str, accelerate: bool
) -> TritonSource:
    if device == "cpu" or accelerate:
        option = "--accelerate is" if accelerate else "--device cpu is"
        raise ConfigError(
            f"{option} for the ONNX file, and this bundle has an engine; "
            "give --backend onnxruntime too"
        )
    remarks = [
        f"The plan loads where Triton has TensorRT {engine.version}, on: {engine.runs_on}.",
    ]
    if VERSION_COMPATIBLE in engine.flags:
        remarks.append(
            "Start Triton with --backend-config=tensorrt,version-compatible=true: the plan is "
            "for later releases of this TensorRT too."
        )
    return TritonSource(
        backend="tensorrt",
        device="cuda",
        content=read_verified(folder, manifest, engine.file),
        inputs=engine.inputs,
        outputs=engine.outputs,
        profiles=engine.profiles,
        runs_on=engine.runs_on,
        remarks=tuple(remarks),
    )


def _onnx(read: "BundleModel", device: str, accelerate: bool) -> TritonSource:
    manifest = read.manifest
    remarks = []
    if manifest.engine is not None and manifest.engine.runtime == "tensorrt_rtx":
        remarks.append(f"{NOT_A_PLAN} Its ONNX file is written, for the ONNX Runtime backend.")
    if manifest.precision == "bf16":
        if device == "cpu":
            raise ConfigError(
                "this bundle is in bf16, which ONNX Runtime does not run on a CPU; "
                "leave --device out, or export another precision"
            )
        device = "cuda"
        remarks.append("bf16 runs on GPUs alone, and needs Triton's ONNX Runtime to have it.")
    if accelerate:
        if device == "cpu" or manifest.precision == "bf16":
            what = "--device cpu" if device == "cpu" else "bf16"
            raise ConfigError(f"--accelerate builds an engine on a GPU; it does not go with {what}")
        device = "cuda"
        remarks.append(
            "Each time Triton loads the model, ONNX Runtime builds an engine first, if it has "
            "TensorRT; that can take minutes."
        )
    return TritonSource(
        backend="onnxruntime",
        device=device,
        content=read.content,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        profiles=(manifest.batch,),
        runs_on={
            "auto": "a GPU where there is one, else a CPU",
            "cpu": "a CPU",
            "cuda": "a GPU",
        }[device],
        remarks=tuple(remarks),
    )
