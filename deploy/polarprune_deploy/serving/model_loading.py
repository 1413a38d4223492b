"""From a bundle on disk to a model that may take traffic: checked, measured, warm.

Every file is read once and held to the manifest before a runtime sees it, and the runner that will
serve must reproduce the outputs stored in the bundle.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from polarprune.errors import BackendUnavailable, BundleError, ParityError
from polarprune.manifest import Manifest, TensorSpec, check_digest, read_verified
from polarprune_deploy.backends.input_making import host_dtype
from polarprune_deploy.backends.loading import How, check_how, engine_runner, onnx_runner
from polarprune_deploy.backends.network_bytes import EngineBytes, NetworkBytes
from polarprune_deploy.backends.runners import Array, Runner
from polarprune_deploy.serving.batch_curve import BatchCurve, measure_curve
from polarprune_deploy.serving.batch_policy import BatchPolicy
from polarprune_deploy.serving.bucketed_engine import BucketedEngine
from polarprune_deploy.serving.infer_requests import Signature
from polarprune_deploy.serving.serve_options import ServeOptions
from polarprune_deploy.serving.served_model import ModelFacts
from polarprune_export.bundle_reading import ONNX_NAME, BundleModel, read_bundle_model
from polarprune_export.output_comparison import compare_outputs, describe_failure
from polarprune_export.parity_samples import SAMPLES_NAME, unpack_samples
from polarprune_export.precisions import TOLERANCES

OPEN_SIDE = 224
"""Pixels of a side that a model leaves open, where its curve is measured."""
PLATFORMS = {
    "onnxruntime": "onnxruntime_onnx",
    "tensorrt": "tensorrt_plan",
    "tensorrt_rtx": "tensorrt_rtx_engine",
}


@dataclass(frozen=True)
class LoadedModel:
    """What a bundle became."""

    facts: ModelFacts
    engine: BucketedEngine


def load_model(
    folder: Path,
    name: str,
    version: str,
    options: ServeOptions,
    say: Callable[[str], None] = lambda words: None,
) -> LoadedModel:
    """Read, check, load, compare, measure.

    Args:
        say: told what the operator should know: that it falls back, for example.

    Raises:
        BundleError: files and manifest do not match.
        ParityError: the runner gives other outputs than those stored.
        BackendUnavailable: the engine cannot run here, and there is no `fallback`.
        Refused, ConfigError: of the bundle, of the options.
    """
    read = read_bundle_model(folder, options.public_key)
    manifest = read.manifest
    if SAMPLES_NAME not in manifest.files:
        raise BundleError(f"{folder} has no {SAMPLES_NAME} to be checked with; export again")
    samples = read_verified(folder, manifest, SAMPLES_NAME)
    for file in sorted(set(manifest.files) - {ONNX_NAME, SAMPLES_NAME}):
        check_digest(folder, manifest, file)
    runner = _open_runner(folder, read, options, say)
    try:
        engine = BucketedEngine(runner, manifest.batch)
        verified = _check_outputs(engine, manifest, samples, runner)
        curve = measure_curve(_runs_of(engine, runner), engine.sizes, filled_up=not engine.exact)
    except BaseException:
        runner.close()
        raise
    policy = _policy(curve, options, engine.most)
    if options.batch_size is not None and options.batch_size > engine.most:
        say(
            f"--batch-size {options.batch_size} is more than the {engine.most} images that {name} "
            f"takes at once; it gets {engine.most}"
        )
    settings = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in runner.settings.items()
    )
    facts = ModelFacts(
        name=name,
        version=version,
        manifest=manifest,
        signature=Signature(_any_batch(runner.inputs), _any_batch(manifest.outputs), engine.most),
        platform=PLATFORMS.get(runner.backend, runner.backend),
        device=runner.device,
        runs=f"{runner.backend} on {runner.device}: {settings}",
        policy=policy,
        sizes=None if engine.exact else engine.sizes,
        verified=(f"{len(manifest.files)} files as the manifest says", *verified),
    )
    return LoadedModel(facts, engine)


def _any_batch(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """As senders see them: a network of one batch size is filled up."""
    return tuple(replace(spec, shape=(-1, *spec.shape[1:])) for spec in specs)


def _open_runner(
    folder: Path, read: BundleModel, options: ServeOptions, say: Callable[[str], None]
) -> Runner:
    manifest = read.manifest
    onnx = NetworkBytes(
        manifest.name, read.content, manifest.files[ONNX_NAME].sha256, manifest.precision
    )
    wants_engine = options.backend not in ("auto", "onnxruntime") or (
        options.backend == "auto" and manifest.engine is not None
    )
    if wants_engine:
        try:
            return _open_engine(folder, manifest, onnx, options)
        except (BackendUnavailable, BundleError) as error:
            if not options.fallback:
                raise type(error)(
                    f"the engine cannot be served here: {error}; or serve the ONNX file: --fallback"
                ) from error
            say(f"the engine cannot be served here ({error}); its ONNX file is served")
    how = How("onnxruntime", options.device, options.threads)
    check_how(how)
    # The event loop wants the cores too (ResNet-20, 32 clients, 2 cores: 1,192 against 1,000
    # requests a second, one run each, not recorded).
    return onnx_runner(onnx, how, spinning=False)


def _open_engine(
    folder: Path, manifest: Manifest, onnx: NetworkBytes, options: ServeOptions
) -> Runner:
    engine = manifest.engine
    wanted = engine.runtime if options.backend == "auto" and engine is not None else options.backend
    if engine is None or engine.runtime != wanted:
        held = "none" if engine is None else f"one for {engine.runtime}"
        raise BundleError(
            f"--backend {wanted} needs an engine for it, and the bundle has {held}; "
            "use --backend auto"
        )
    how = How(engine.runtime, "cuda", None, options.mode)
    check_how(how)
    data = read_verified(folder, manifest, engine.file)
    digest = manifest.files[engine.file].sha256
    return engine_runner(
        EngineBytes(
            manifest.name, data, digest, manifest.precision, engine.runtime, engine.profiles, onnx
        ),
        how,
    )


def _check_outputs(
    engine: BucketedEngine, manifest: Manifest, samples: bytes, runner: Runner
) -> list[str]:
    """The stored outputs, again."""
    names = [spec.name for spec in manifest.outputs]
    scored = names.index("out") if "out" in names else 0
    found = []
    for kind, (inputs, reference) in unpack_samples(samples, manifest).items():
        parts = [
            _run_padded(engine, runner, inputs[start : start + engine.most])
            for start in range(0, len(inputs), engine.most)
        ]
        outputs = [np.concatenate([part[name] for part in parts]) for name in names]
        tolerance = TOLERANCES[manifest.precision]
        comparison = compare_outputs(outputs, reference, scored)
        if not comparison.max_rel_error <= tolerance:  # NaN is a failure too
            words = describe_failure(
                f"{runner.backend} here", "the stored reference", kind, comparison, tolerance
            )
            raise ParityError(f"{words}; do not serve this bundle on this machine")
        found.append(
            f"{len(inputs)} stored {kind} inputs give the stored outputs, largest relative error "
            f"{comparison.max_rel_error:.2g} (tolerance {tolerance:g})"
        )
    return found


def _run_padded(engine: BucketedEngine, runner: Runner, images: Array) -> dict[str, Array]:
    dtype = host_dtype(runner.inputs[0].dtype)
    named = {runner.inputs[0].name: images.astype(dtype, copy=False)}
    return engine.run(engine.assemble([named], len(images)), len(images))


def _runs_of(engine: BucketedEngine, runner: Runner) -> Callable[[int], None]:
    generator = np.random.default_rng(0)

    def inputs(rows: int) -> dict[str, Array]:
        made = {}
        for spec in runner.inputs:
            shape = (rows, *(OPEN_SIDE if side < 0 else side for side in spec.shape[1:]))
            made[spec.name] = generator.integers(0, 2, shape).astype(host_dtype(spec.dtype))
        return made

    held: dict[int, dict[str, Array]] = {}

    def run(rows: int) -> None:
        if rows not in held:
            held.clear()
            held[rows] = inputs(rows)
        engine.run(held[rows], rows)

    return run


def _policy(curve: BatchCurve, options: ServeOptions, most: int) -> BatchPolicy:
    size = curve.best_size if options.batch_size is None else min(options.batch_size, most)
    window = curve.window_seconds if options.window_ms is None else options.window_ms / 1000
    return BatchPolicy(size, window, curve)
