"""One engine builder for TensorRT 10.12+, TensorRT 11 and TensorRT-RTX.

Precision is a property of the ONNX graph (the network is strongly typed). TensorRT-RTX builds
without a GPU and its engine is compiled for the card where it is loaded; enterprise TensorRT builds
on, and for, one GPU.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarprune.errors import BundleError, ConfigError, Refused
from polarprune.files.whole_files import write_whole
from polarprune.manifest import BatchProfile, EngineInfo
from polarprune_export.engine_compatibility import check_compatibility, set_compatibility
from polarprune_export.engine_description import describe_engine
from polarprune_export.engine_runtime import collecting_logger, import_runtime, quote_log
from polarprune_export.engine_targets import choose_targets
from polarprune_export.timing_cache import cache_path, load_timings, save_timings

LARGEST_BATCH, LARGEST_FIXED = 1 << 16, 1 << 10
"""Images. A batch size that is fixed is also that of every check."""
WORKSPACE_BYTES = 1 << 30
"""An upper bound for scratch memory; networks of this size use a few MB of it."""

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many steps of it are done, and how many there are."""


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is to be, besides its graph and batch sizes.

    `runtime` is "auto", "tensorrt" or "tensorrt_rtx". `targets` are compute capabilities as "8.9",
    None for all that the builder can. `compatibility` is one of `COMPATIBILITIES`.
    """

    runtime: str = "auto"
    targets: Sequence[str] | None = None
    compatibility: str = "none"


@dataclass(frozen=True)
class EngineReport:
    """What was built; `info` is the manifest's entry, `notes` what was worked around."""

    path: Path
    bytes: int
    info: EngineInfo
    notes: tuple[str, ...] = ()

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
    targets: Sequence[str] | None = None,
    compatibility: str = "none",
    progress: Progress | None = None,
) -> EngineReport:
    """Builds the engine of an ONNX file and writes it whole or not at all.

    Args:
        onnx_path: one file; weights beside it are read too, but the fingerprint leaves them out.
        batch: smallest, tuned and largest batch size; a batch of one gets a profile of its own.
        runtime: "tensorrt", "tensorrt_rtx", or "auto": enterprise TensorRT where it is installed
            and a GPU is here, else TensorRT-RTX.
        targets: compute capabilities, as ("8.6", "8.9"); None for all that the builder can.
            Enterprise TensorRT builds for this machine's own alone.
        compatibility: one of `COMPATIBILITIES`; of enterprise TensorRT alone.

    Raises:
        BackendUnavailable: the package (or the GPU that it needs) is not here.
        BundleError: the ONNX file cannot be read.
        ConfigError: a batch profile or word that is none.
        Refused: a target or compatibility that this builder does not have, or a graph that was not
            accepted or not built; the builder's log lines are quoted.
    """
    profiles = batch_profiles(batch)
    check_compatibility(compatibility)
    name, trt = import_runtime(runtime)
    onnx_path, out_path = Path(onnx_path), Path(out_path)
    onnx_sha256 = _digest(onnx_path)
    logger, lines = collecting_logger(trt)
    builder = trt.Builder(logger)
    config = builder.create_builder_config()
    # Before the graph is read: what cannot be had is known at once.
    targets = choose_targets(trt, name, config, targets)
    set_compatibility(trt, name, config, compatibility)
    network = _parse(trt, builder, logger, lines, onnx_path)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    profiles = _add_profiles(builder, network, config, profiles)
    if progress is not None:
        config.progress_monitor = _progress_monitor(trt, progress)
    timings = None if name == "tensorrt_rtx" else _timings_path(trt)
    notes = [] if timings is None else [load_timings(config, timings)]
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused(f"{name} {trt.__version__} did not build {onnx_path}: {quote_log(lines)}")
    content = bytes(plan)
    write_whole(out_path, content)
    if timings is not None:
        notes.append(save_timings(config, timings))
    info = describe_engine(
        trt,
        name,
        network,
        file=out_path.name,
        onnx_sha256=onnx_sha256,
        profiles=profiles,
        targets=targets,
        compatibility=compatibility,
    )
    said = tuple(note for note in notes if note is not None)
    return EngineReport(out_path, len(content), info, said)


def _digest(onnx_path: Path) -> str:
    try:
        with onnx_path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(
            f"{onnx_path} cannot be read ({error.strerror}); give an ONNX file"
        ) from None


def _timings_path(trt: Any) -> Path:
    import torch

    return cache_path(str(trt.__version__), torch.cuda.get_device_name())


def check_engine_options(options: EngineOptions) -> None:
    """Refuses what cannot be built whatever the graph, before the work that comes first is done.

    Raises:
        BackendUnavailable, ConfigError, Refused: as `build_engine`.
    """
    check_compatibility(options.compatibility)
    name, trt = import_runtime(options.runtime)
    config = trt.Builder(collecting_logger(trt)[0]).create_builder_config()
    choose_targets(trt, name, config, options.targets)
    set_compatibility(trt, name, config, options.compatibility)


def batch_profiles(batch: tuple[int, int, int]) -> tuple[BatchProfile, ...]:
    """One profile for a batch of one, where that is in the range, and one for the whole range.

    Raises:
        ConfigError: not 1 <= smallest <= tuned <= largest, or more than can be meant.
    """
    low, opt, high = batch
    if not 1 <= low <= opt <= high:
        raise ConfigError(
            f"the batch profile is {low}:{opt}:{high}; "
            "it must be MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX"
        )
    most = LARGEST_FIXED if low == high else LARGEST_BATCH
    if high > most:
        raise ConfigError(f"the largest batch is {high} images; it may be up to {most}")
    whole = BatchProfile(low, opt, high)
    one = BatchProfile(1, 1, 1)
    return (one, whole) if low == 1 < high else (whole,)


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
            f"{'; '.join(words) or 'no error given'}; log: {quote_log(lines)}"
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


def _progress_monitor(trt: Any, progress: Progress) -> Any:
    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            self.steps[phase] = num_steps
            progress(f"engine: {phase}", 0, num_steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(f"engine: {phase}", step + 1, self.steps[phase])
            return True  # False would cancel the build

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.pop(phase)
            progress(f"engine: {phase}", steps, steps)

    return ProgressMonitor()
