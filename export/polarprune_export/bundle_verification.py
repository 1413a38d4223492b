"""A bundle checked again, without torch, without a GPU and without the data set.

1. every file has the size and digest of the manifest; each is read once, and those bytes are used;
2. no link of the certificate chain is broken;
3. the ONNX is valid, keeps its weights inside, has the stated inputs and outputs, passes the lint;
4. ONNX Runtime on this machine still gives the stored reference outputs.

An engine is checked by its digest and never deserialised here: it is executable code.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from polarprune.errors import BundleError, ParityError
from polarprune.manifest import MANIFEST_NAME, Manifest, TensorSpec, read_manifest, read_verified
from polarprune_export.onnx_lint import BASE_OPERATORS, lint_model
from polarprune_export.onnx_session import open_session, run_session
from polarprune_export.output_comparison import compare_outputs, describe_failure
from polarprune_export.parity_samples import SAMPLES_NAME, unpack_samples
from polarprune_export.precisions import PRECISIONS, TOLERANCES, runnable

ONNX_NAME = "model.onnx"
CHUNK = 8


def verify_bundle(folder: Path | str) -> dict[str, Any]:
    """Checks the bundle and returns what was checked; `unlisted` names files nobody vouches for.

    Raises:
        BundleError: files and manifest do not match, or the manifest does not match the model.
        ParityError: ONNX Runtime on this machine gives other outputs.
        Refused: the lint finds something.
        BackendUnavailable: ONNX Runtime is not installed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    contents = {name: read_verified(folder, manifest, name) for name in sorted(manifest.files)}
    _check_required(manifest)
    for link in manifest.certificate:
        if link.passed is False:
            raise BundleError(f"{folder}: the certificate chain is broken at {link.stage!r}")
    operators = _check_onnx(contents[ONNX_NAME], manifest, folder)
    parity = _rerun_parity(contents[ONNX_NAME], contents[SAMPLES_NAME], manifest)
    listed = {MANIFEST_NAME, *manifest.files}
    return {
        "bundle": str(folder),
        "name": manifest.name,
        "precision": manifest.precision,
        "files": {name: entry.size for name, entry in sorted(manifest.files.items())},
        "unlisted": sorted(path.name for path in folder.iterdir() if path.name not in listed),
        "engine": None if manifest.engine is None else "digest only, not run",
        "runs_on": None if manifest.engine is None else manifest.engine.runs_on,
        "real_images": manifest.real_images,
        **{"top1": None, **({} if manifest.accuracy is None else manifest.accuracy.figures)},
        "operators": operators,
        "parity": parity,
        "passed": True,
    }


def _check_required(manifest: Manifest) -> None:
    required = [ONNX_NAME, SAMPLES_NAME]
    if manifest.engine is not None:
        required.append(manifest.engine.file)
    for name in required:
        if name not in manifest.files:
            raise BundleError(f"{MANIFEST_NAME} does not list {name}; export again")


def _check_onnx(content: bytes, manifest: Manifest, folder: Path) -> dict[str, int]:
    """Checks the model and counts its operators; what was pruned may leave Slice and Concat."""
    import onnx
    from google.protobuf.message import DecodeError

    where = str(folder / ONNX_NAME)
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        words = " ".join(str(e).split())[:200]
        raise BundleError(f"{where} is not valid ONNX ({words}); export again") from None
    external = [t.name for t in model.graph.initializer if t.data_location == t.EXTERNAL]
    if external:
        raise BundleError(
            f"{where} keeps {external[0]!r} in another file, which no digest covers; export again"
        )
    for kind, values, specs in (
        ("inputs", model.graph.input, manifest.inputs),
        ("outputs", model.graph.output, manifest.outputs),
    ):
        got, stated = [value.name for value in values], [spec.name for spec in specs]
        if got != stated:
            raise BundleError(f"{where} has {kind} {got}, the manifest says {stated}; export again")
    lint_model(model, where, _base_operators(manifest))
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def _base_operators(manifest: Manifest) -> dict[str, int]:
    """What the manifest says that the network before pruning holds as well."""
    stated = manifest.base.get(BASE_OPERATORS, {})
    if not isinstance(stated, dict) or not all(type(count) is int for count in stated.values()):
        raise BundleError(
            f"{MANIFEST_NAME}: base.{BASE_OPERATORS} is no count of each; export again"
        )
    return stated


def _rerun_parity(model: bytes, samples: bytes, manifest: Manifest) -> list[dict[str, Any]]:
    import onnx

    tolerance = TOLERANCES.get(manifest.precision)
    if tolerance is None:
        raise BundleError(
            f"{MANIFEST_NAME}: the precision is {manifest.precision!r}, this polarprune knows "
            f"{', '.join(PRECISIONS)}; export again"
        )
    session = open_session(runnable(onnx.load_from_string(model), manifest.precision))
    links = []
    for kind, (inputs, reference) in unpack_samples(samples, manifest.preprocessing).items():
        _check_shape(inputs.shape, manifest.inputs[0])
        outputs = run_session(session, inputs, chunk=CHUNK)
        comparison = compare_outputs(outputs, reference)
        if not comparison.max_rel_error <= tolerance:  # NaN is a failure too
            words = describe_failure(
                "ONNX Runtime here", "the stored reference", kind, comparison, tolerance
            )
            raise ParityError(f"{words}; do not serve this bundle on this machine")
        links.append(
            {
                "inputs": kind,
                "n": len(inputs),
                "tolerance": tolerance,
                "max_abs_error": comparison.max_abs_error,
                "max_rel_error": comparison.max_rel_error,
                "top1_agreement": comparison.top1_agreement,
            }
        )
    return links


def _check_shape(shape: tuple[int, ...], spec: TensorSpec) -> None:
    if shape[1:] != spec.shape[1:]:
        raise BundleError(
            f"{SAMPLES_NAME} has inputs of shape {shape}, the manifest says {spec.shape}; "
            "export again"
        )
