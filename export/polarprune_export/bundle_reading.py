"""A bundle's manifest and graph, read and checked before any runtime sees them.

The verifier and every runner that deploys a bundle come in through here, so that what one of them
refuses the other cannot load.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polarprune.errors import BundleError, quote
from polarprune.manifest import MANIFEST_NAME, Manifest, TensorSpec, read_verified
from polarprune_export.engine_description import fingerprint_of
from polarprune_export.onnx_guard import guard_model
from polarprune_export.onnx_lint import BASE_OPERATORS, lint_model
from polarprune_export.precisions import precision_of
from polarprune_export.signatures import read_signed_manifest

if TYPE_CHECKING:
    import onnx

ONNX_NAME = "model.onnx"


@dataclass(frozen=True)
class BundleModel:
    """What was read: `content` are the bytes that were hashed, and that `model` was parsed from.

    `signature` says what is known of it; `largest` are the bytes of the graph's largest tensor for
    one image.
    """

    manifest: Manifest
    signature: str
    content: bytes
    model: "onnx.ModelProto"
    largest: int


def read_bundle_model(folder: Path, public_key: Path | str | None = None) -> BundleModel:
    """Checks the manifest and the ONNX file, and returns both.

    Args:
        public_key: a PEM file; the manifest must be signed by this ed25519 key.

    Raises:
        BundleError: the signature, a value of the manifest, the certificate chain, the ONNX file or
            what the manifest says of it does not hold.
        Refused: the lint finds something.
        BackendUnavailable, ConfigError: of the key.
    """
    manifest, signature = read_signed_manifest(folder, public_key)
    if ONNX_NAME not in manifest.files:
        raise BundleError(f"{MANIFEST_NAME} does not list {ONNX_NAME}; export again")
    for link in manifest.certificate:
        if link.passed is False:
            raise BundleError(
                f"{folder}: the certificate chain is broken at {quote(link.stage)}; do not use it"
            )
    _check_engine(manifest)
    content = read_verified(folder, manifest, ONNX_NAME)
    where = str(folder / ONNX_NAME)
    model, largest = guard_model(content, where)
    _check_specs("inputs", model.graph.input, manifest.inputs, where)
    _check_specs("outputs", model.graph.output, manifest.outputs, where)
    lint_model(model, where, _base_operators(manifest))
    _check_images(manifest)
    _check_precision(manifest, model)
    return BundleModel(manifest, signature, content, model, largest)


def _check_engine(manifest: Manifest) -> None:
    """The engine is listed, is of this graph, and has its inputs and outputs."""
    engine = manifest.engine
    if engine is None:
        return
    if engine.file not in manifest.files or engine.file == ONNX_NAME:
        raise BundleError(f"{MANIFEST_NAME} does not list {quote(engine.file)}; export again")
    for kind in ("inputs", "outputs"):
        got, stated = ([t.name for t in getattr(of, kind)] for of in (engine, manifest))
        if got != stated:
            raise BundleError(
                f"{MANIFEST_NAME}: the engine has {kind} {quote(got)}, the model {quote(stated)}; "
                "export again"
            )
    # Bundles of older versions do not say what their engine was built from.
    if engine.fingerprint not in (None, fingerprint_of(engine, manifest.files[ONNX_NAME].sha256)):
        raise BundleError(
            f"{engine.file} was not built from this {ONNX_NAME} with what {MANIFEST_NAME} states "
            "(the fingerprint differs); export again"
        )


def _check_specs(
    kind: str,
    values: "Sequence[onnx.ValueInfoProto]",
    stated: tuple[TensorSpec, ...],
    where: str,
) -> None:
    got = tuple(_spec(value) for value in values)
    if got != stated:
        raise BundleError(
            f"{where} has {kind} {_in_words(got)}, the manifest says {_in_words(stated)}; "
            "export again"
        )


def _check_images(manifest: Manifest) -> None:
    """The preprocessing makes what the graph takes, and no class is without an output."""
    steps, sides = manifest.preprocessing, manifest.inputs[0].shape
    if steps is not None and len(sides) == 4:
        made = (len(steps.mean), steps.height, steps.width)
        takes = sides[1:] if steps.layout == "NCHW" else (sides[3], *sides[1:3])
        if any(side not in (-1, size) for side, size in zip(takes, made, strict=True)):
            raise BundleError(
                f"{MANIFEST_NAME}: the preprocessing makes images of {made}, the model takes "
                f"{takes} (channels, height, width); export again"
            )
    scored = next((t for t in manifest.outputs if t.name == "out"), manifest.outputs[0]).shape
    if len(scored) > 1 and 0 <= scored[1] < len(manifest.classes):
        raise BundleError(
            f"{MANIFEST_NAME} names {len(manifest.classes)} classes, the model has {scored[1]} "
            "outputs; export again"
        )


def _check_precision(manifest: Manifest, model: "onnx.ModelProto") -> None:
    """The stated precision is one that the graph holds: tolerances depend on it."""
    holds = precision_of(model)
    if manifest.precision != holds:
        raise BundleError(
            f"{MANIFEST_NAME} says {manifest.precision}, {ONNX_NAME} is {holds}; export again"
        )


def _spec(value: "onnx.ValueInfoProto") -> TensorSpec:
    import numpy as np
    from onnx import TensorProto, helper

    kind = value.type.tensor_type
    if kind.elem_type == TensorProto.BFLOAT16:
        dtype = "bfloat16"
    else:
        try:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        except (KeyError, TypeError, ValueError):
            dtype = "unknown"
    sides = kind.shape.dim
    return TensorSpec(
        value.name,
        dtype,
        tuple(side.dim_value if side.HasField("dim_value") else -1 for side in sides),
    )


def _in_words(specs: tuple[TensorSpec, ...]) -> str:
    return quote([(spec.name, spec.dtype, spec.shape) for spec in specs], 200)


def _base_operators(manifest: Manifest) -> dict[str, int]:
    """What the manifest says that the network before pruning holds as well."""
    stated = manifest.base.get(BASE_OPERATORS, {})
    if not isinstance(stated, dict) or not all(type(count) is int for count in stated.values()):
        raise BundleError(
            f"{MANIFEST_NAME}: base.{BASE_OPERATORS} is no count of each; export again"
        )
    return stated
