"""The bytes of an ONNX file or an engine, read once and held to the manifest.

The bytes of a bundle are compared with the manifest, and those very bytes go to the deserializer:
no second look at the disk, on which the file may have changed meanwhile.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from polarprune.errors import BundleError
from polarprune.manifest import BatchProfile, is_bundle, read_verified


@dataclass(frozen=True)
class NetworkBytes:
    """A network's verified bytes and what its manifest, if it has one, says about it."""

    name: str
    data: bytes
    sha256: str
    precision: str | None


@dataclass(frozen=True)
class EngineBytes:
    """A verified engine and what its manifest says about it.

    `runtime` is "tensorrt" or "tensorrt_rtx", `onnx` the bytes it was built from, for a reference.
    """

    name: str
    data: bytes
    sha256: str
    precision: str
    runtime: str
    profiles: tuple[BatchProfile, ...]
    onnx: NetworkBytes


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
        return NetworkBytes(manifest.name, data, _digest(data), manifest.precision)
    if public_key is not None:
        raise no_signature(path, public_key)
    if path.suffix != ".onnx":
        raise BundleError(
            f"{path} is neither a bundle nor an ONNX file; write one with: polarprune export"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); give a bundle or an ONNX file"
        ) from None
    guard_model(data, str(path), foreign=True)
    return NetworkBytes(path.stem, data, _digest(data), None)


def no_signature(path: Path, public_key: Path | str) -> BundleError:
    """The refusal of a key for something that cannot be signed."""
    return BundleError(
        f"{path} is no bundle, so that {public_key} cannot check its signature; give a bundle, or "
        "no public key"
    )


def read_engine(folder: Path, runtime: str, public_key: Path | str | None = None) -> EngineBytes:
    """The engine of a bundle, checked against its manifest.

    Args:
        folder: a bundle.
        runtime: "tensorrt" or "tensorrt_rtx": an engine of one does not run in the other.

    Raises:
        BundleError: it holds no engine of this runtime, or one that differs from the manifest.
    """
    from polarprune_export.bundle_reading import read_bundle_model

    if not is_bundle(folder):
        raise BundleError(
            f"{folder} is no bundle, and engines come in bundles; write one with: "
            "polarprune export --format trt"
        )
    read = read_bundle_model(folder, public_key)
    manifest, engine = read.manifest, read.manifest.engine
    if engine is None or engine.runtime != runtime:
        held = "no engine" if engine is None else f"an engine for {engine.runtime}"
        raise BundleError(
            f"{folder} holds {held}, not one for {runtime}; export it again with --format trt "
            f"where {runtime} builds"
        )
    data = read_verified(folder, manifest, engine.file)
    onnx = NetworkBytes(manifest.name, read.content, _digest(read.content), manifest.precision)
    return EngineBytes(
        manifest.name, data, _digest(data), manifest.precision, runtime, engine.profiles, onnx
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
