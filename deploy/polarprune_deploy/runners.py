"""A runner: one network, loaded once by one backend, behind a protocol that every backend meets.

Nothing here imports a backend; each lives in its own module, imported when asked for. The bytes of
a bundle are read once, compared with the manifest, and those very bytes go to the deserializer: no
second look at the disk, on which the file may have changed meanwhile.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from polarprune.errors import BackendUnavailable, BundleError, ConfigError
from polarprune.manifest import TensorSpec, is_bundle, read_verified

Array = NDArray[Any]

BACKENDS = ("auto", "torch", "onnxruntime", "tensorrt", "tensorrt_rtx")
DEVICES = ("cpu", "cuda")


class PreparedRun(Protocol):
    """Inputs in place and outputs allocated: calling it is the work that gets timed.

    A call returns when the outputs are complete, on whatever device they are.
    """

    def __call__(self) -> None:
        """Run once."""
        ...

    def outputs(self) -> dict[str, Array]:
        """The outputs of the last call, on the host. NaN where a call wrote nothing."""
        ...


class Runner(Protocol):
    """One loaded network."""

    @property
    def name(self) -> str:
        """What people call it: the manifest's name or the file's stem."""
        ...

    @property
    def backend(self) -> str:
        """One of `BACKENDS` except "auto"."""
        ...

    @property
    def device(self) -> str:
        """One of `DEVICES`."""
        ...

    @property
    def precision(self) -> str:
        """fp32, fp16, bf16 or int8."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a run takes; a free side, the batch, is -1."""
        ...

    @property
    def settings(self) -> Mapping[str, str | int | float]:
        """What else decides the speed (threads, spinning); equal on both sides of a comparison."""
        ...

    @property
    def sha256(self) -> str:
        """Digest of the bytes that were loaded."""
        ...

    @property
    def load_ms(self) -> float:
        """Cold start: from bytes in memory to a network that can run."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, on the host."""
        ...

    def prepare(self, inputs: Mapping[str, Array]) -> PreparedRun:
        """Everything of a run that need not be repeated; may run once to learn the shapes."""
        ...

    def twin(self) -> "Runner":
        """The same bytes loaded a second time, sharing nothing: the A/A control."""
        ...

    def close(self) -> None:
        """Free what was loaded; a second call does nothing."""
        ...


@dataclass(frozen=True)
class NetworkBytes:
    """A network's verified bytes and what its manifest, if it has one, says about it."""

    name: str
    data: bytes
    sha256: str
    precision: str | None


def load_runner(
    path: Path | str,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    public_key: Path | str | None = None,
) -> Runner:
    """Load a bundle, or a plain ONNX file, which no manifest vouches for.

    Args:
        path: a bundle folder or an .onnx file.
        backend: "auto" is onnxruntime, the one backend of this version.
        device: "cpu" or "cuda".
        threads: threads inside one operator; None takes every CPU the process may use.
        public_key: a PEM file; the bundle must be signed by this ed25519 key.

    Raises:
        BundleError: a file that differs from the manifest, a graph that is not safe to load, or
            with a key a signature that does not hold; no runtime has seen anything then.
        BackendUnavailable: a backend or device that is not here.
        ConfigError: a name or number out of range.
    """
    check_backend(backend, device)
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    network = read_network(Path(path), public_key)
    from polarprune_deploy.runner_onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(network, device=device, threads=threads)


def check_backend(backend: str, device: str) -> None:
    """Refuse, before any work is done, a backend or device that could not run in the end."""
    if backend not in BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if device not in DEVICES:
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if backend not in ("auto", "onnxruntime"):
        raise BackendUnavailable(
            f"this version runs networks on onnxruntime only, got --backend {backend}; "
            "use --backend onnxruntime"
        )


def read_network(path: Path, public_key: Path | str | None = None) -> NetworkBytes:
    """The bytes of a bundle's ONNX file, checked against its manifest, or of a plain ONNX file.

    An ONNX file that lies in a bundle is held to that bundle's manifest too.
    """
    from polarprune_export.bundle_reading import ONNX_NAME, read_bundle_model
    from polarprune_export.onnx_guard import guard_model

    folder = path.parent if path.suffix == ".onnx" else path
    if is_bundle(folder):
        read = read_bundle_model(folder, public_key)
        manifest, data = read.manifest, read.content
        if path.suffix == ".onnx" and path.name != ONNX_NAME:
            data = read_verified(folder, manifest, path.name)
            guard_model(data, str(path))
        digest = hashlib.sha256(data).hexdigest()
        return NetworkBytes(manifest.name, data, digest, manifest.precision)
    if public_key is not None:
        raise BundleError(f"{path} is no bundle, so that {public_key} cannot check its signature")
    if path.suffix != ".onnx":
        raise BundleError(
            f"{path} is neither a bundle nor an ONNX file; write one with: polarprune export"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from None
    guard_model(data, str(path), foreign=True)
    return NetworkBytes(path.stem, data, hashlib.sha256(data).hexdigest(), None)
