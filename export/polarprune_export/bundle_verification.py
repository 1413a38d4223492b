"""A bundle checked again, without torch, without a GPU and without the data set.

1. with a public key: the manifest's signature, before anything is parsed;
2. the manifest's values, the certificate chain, and that the engine was built from this ONNX;
3. every file has the size and digest of the manifest; each is read once, and those bytes are used;
4. the ONNX is valid and safe to load, has the stated inputs and outputs, passes the lint;
5. ONNX Runtime on this machine still gives the stored reference outputs.

An engine is checked by its digest and never deserialised here: it is executable code.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from polarprune.errors import BundleError, ParityError, quote
from polarprune.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    check_digest,
    read_verified,
)
from polarprune_export.bundle_reading import ONNX_NAME, BundleModel, read_bundle_model
from polarprune_export.onnx_session import open_session, run_session, scored_output
from polarprune_export.output_comparison import compare_outputs, describe_failure
from polarprune_export.parity_samples import SAMPLES_NAME, Stored, unpack_samples
from polarprune_export.precisions import TOLERANCES, runnable

CHUNK = 8
CHUNK_BYTES = 1 << 30
"""Of the largest tensor, for as many images as are computed at once."""


def verify_bundle(folder: Path | str, public_key: Path | str | None = None) -> dict[str, Any]:
    """Checks the bundle and returns what was checked; `unlisted` names files nobody vouches for.

    Args:
        public_key: a PEM file; the bundle must be signed by this ed25519 key. Without it a
            signature is not checked, and `signature` says so.

    Raises:
        BundleError: the signature is absent or wrong, files and manifest do not match, or the
            manifest does not match the model.
        ConfigError: the public key cannot be read.
        ParityError: ONNX Runtime on this machine gives other outputs.
        Refused: the lint finds something.
        BackendUnavailable: ONNX Runtime, or with a key `cryptography`, is not installed.
    """
    folder = Path(folder)
    read = read_bundle_model(folder, public_key)
    manifest = read.manifest
    if SAMPLES_NAME not in manifest.files:
        raise BundleError(f"{MANIFEST_NAME} does not list {SAMPLES_NAME}; export again")
    samples = read_verified(folder, manifest, SAMPLES_NAME)
    for name in sorted(set(manifest.files) - {ONNX_NAME, SAMPLES_NAME}):
        check_digest(folder, manifest, name)
    operators = Counter(node.op_type for node in read.model.graph.node)
    parity = _rerun_parity(read, samples)
    listed = {MANIFEST_NAME, SIGNATURE_NAME, *manifest.files}
    return {
        "bundle": str(folder),
        "name": manifest.name,
        "precision": manifest.precision,
        "signature": read.signature,
        "files": {name: entry.size for name, entry in sorted(manifest.files.items())},
        "unlisted": sorted(_printable(p.name) for p in folder.iterdir() if p.name not in listed),
        "engine": None if manifest.engine is None else "digest only, not run",
        "runs_on": None if manifest.engine is None else manifest.engine.runs_on,
        "real_images": manifest.real_images,
        **{"top1": None, **({} if manifest.accuracy is None else manifest.accuracy.figures)},
        "operators": dict(sorted(operators.items())),
        "parity": parity,
        "passed": True,
    }


def _printable(name: str) -> str:
    """A file's name, which may be any bytes, as a terminal can show it."""
    return name if name.isprintable() else ascii(name)


def _rerun_parity(read: BundleModel, content: bytes) -> list[dict[str, Any]]:
    manifest = read.manifest
    # Before a session is opened: the samples fit the graph.
    kinds = unpack_samples(content, manifest)
    session = open_session(runnable(read.model, manifest.precision))
    tolerance = TOLERANCES[manifest.precision]
    chunk = max(1, min(CHUNK, CHUNK_BYTES // max(1, read.largest)))
    return [_compare(session, kind, kinds[kind], chunk, tolerance) for kind in kinds]


def _compare(
    session: Any, kind: str, samples: Stored, chunk: int, tolerance: float
) -> dict[str, Any]:
    inputs, reference = samples
    outputs = run_session(session, inputs, chunk=chunk)
    try:
        comparison = compare_outputs(outputs, reference, scored_output(session))
    except ValueError as error:  # another number or shape of outputs
        raise ParityError(
            f"ONNX Runtime here gives other outputs on {kind} inputs ({quote(str(error), 200)}); "
            "do not serve this bundle"
        ) from None
    if not comparison.max_rel_error <= tolerance:  # NaN is a failure too
        words = describe_failure(
            "ONNX Runtime here", "the stored reference", kind, comparison, tolerance
        )
        raise ParityError(f"{words}; do not serve this bundle on this machine")
    return {
        "inputs": kind,
        "n": len(inputs),
        "tolerance": tolerance,
        "max_abs_error": comparison.max_abs_error,
        "max_rel_error": comparison.max_rel_error,
        "top1_agreement": comparison.top1_agreement,
    }
