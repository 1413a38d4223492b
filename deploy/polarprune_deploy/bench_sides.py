"""From what a user names to the two sides of a comparison, opened once and loaded per build.

Networks that are not exported yet go through `polarprune_export.write_onnx` into a temporary
folder, both sides in the same way, so that the exporter is no part of the difference. For torch
nothing is exported: the network is run as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from polarprune.errors import ConfigError
from polarprune.manifest import is_bundle, read_manifest
from polarprune.runs.run_folder import RUN_FILE, RunFolder, means_a_path
from polarprune_deploy.backends.loading import (
    ENGINE_BACKENDS,
    How,
    engine_runner,
    load_runner,
    onnx_runner,
    refuse_onnx,
)
from polarprune_deploy.backends.network_bytes import EngineBytes, NetworkBytes, read_network
from polarprune_deploy.backends.runners import Runner
from polarprune_deploy.latency import Progress

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Side:
    """One side: an ONNX file or bundle, or for torch a network.

    `shape` is that of one image, where it is known without opening the file.
    """

    label: str
    file: Path | None = None
    network: "nn.Module | None" = None
    shape: tuple[int, ...] = ()


def is_run(path: Path) -> bool:
    """Whether a training run left this folder."""
    return (path / RUN_FILE).is_file()


def is_exported(path: Path) -> bool:
    """Whether it holds ONNX already."""
    return is_bundle(path) or path.suffix == ".onnx"


def check_source(path: Path, how: How) -> None:
    """Refuse what is not there and is no model either, or is nothing for this backend.

    Raises:
        ConfigError: it says what there could have been.
    """
    name = str(path)
    if path.exists():
        if how.runtime == "torch":
            refuse_onnx(path)
        return
    if means_a_path(name):
        raise ConfigError(f"{name} does not exist; give a run folder, a bundle or a model")
    from polarprune.networks import input_size

    try:
        input_size(name)
    except ConfigError as error:
        raise ConfigError(f"there is no run or bundle {name}, and {error}") from error


def options_as_trained(
    sources: Sequence[Path | None], options: dict[str, int | None]
) -> dict[str, int | None]:
    """A model's class count and image size: where they were not given, those of a run beside it."""
    for path in sources:
        if path is not None and is_run(path):
            run = RunFolder(path)
            trained = {"num_classes": run.class_count, "image_size": run.input_shape[-1]}
            return {key: trained[key] if options[key] is None else options[key] for key in trained}
    return options


class SideOpener:
    """Opens sides for one way of running; what it writes goes to `folder`."""

    def __init__(
        self,
        folder: Path,
        how: How,
        model_options: dict[str, int | None],
        progress: Progress,
    ) -> None:
        """Nothing is opened yet."""
        self._folder, self._how, self._progress = folder, how, progress
        self._model_options = model_options

    def candidate(self, path: Path) -> Side:
        """The pruned side."""
        return self._side(path, f"{path} (pruned)" if is_run(path) else str(path), "candidate")

    def rival(self, path: Path, candidate: Side) -> Side:
        """What it is compared with."""
        label = f"{path} (pruned)" if is_run(path) else str(path)
        if label == candidate.label:
            label += " (again)"
        return self._side(path, label, "against", candidate)

    def base_of(self, path: Path) -> Side:
        """The architecture a run began with.

        What the weights are does not matter to the time, so they are left as drawn.
        """
        run = RunFolder(path)
        return self._made(run.base_network(), run.input_shape, "base", "base")

    def _side(self, path: Path, label: str, role: str, other: Side | None = None) -> Side:
        if is_exported(path):
            inputs = read_manifest(path).inputs if is_bundle(path) else ()
            return Side(label, path, shape=tuple(inputs[0].shape[1:]) if inputs else ())
        from polarprune.network_files import is_network_folder
        from polarprune_export.export_sources import open_source

        if path.exists() and not is_run(path) and not is_network_folder(path):
            raise ConfigError(
                f"{path} is neither a run folder, a bundle, a saved network nor an ONNX file; "
                "name one of these or a model"
            )
        options = dict.fromkeys(self._model_options) if path.exists() else self._model_options
        source = open_source(str(path), data=None, weights=None, **options)
        if other is not None and other.shape and other.shape != source.input_shape:
            raise ConfigError(
                f"{label} takes images of {_sides(source.input_shape)}, {other.label} of "
                f"{_sides(other.shape)}; give the model another --image-size"
            )
        return self._made(source.network, source.input_shape, label, role)

    def _made(self, network: "nn.Module", shape: tuple[int, ...], label: str, stem: str) -> Side:
        if self._how.runtime == "torch":
            return Side(label, network=network.eval(), shape=shape)
        import torch

        from polarprune_export import write_onnx

        self._progress(f"exporting {label}", 0, 1)
        file = self._folder / f"{stem}.onnx"
        write_onnx(network.eval(), file, torch.zeros(2, *shape))
        return Side(label, file, shape=shape)

    def load(self, side: Side, sizes: Sequence[int], *, rebuild: bool) -> Runner:
        """A runner, loaded afresh.

        Args:
            side: what was opened.
            sizes: batch sizes that an engine built here should take.
            rebuild: build an engine anew even where the bundle brings one.
        """
        self._progress(f"loading {side.label}", 0, 1)
        how = self._how
        if side.file is None:
            assert side.network is not None
            from polarprune_deploy.backends.runner_torch import TorchRunner

            return TorchRunner(
                side.network, side.shape, name=side.label, device=how.device, mode=how.mode,
                precision=how.precision or "fp32", threads=how.threads,
            )  # fmt: skip
        if how.runtime not in ENGINE_BACKENDS:
            return onnx_runner(replace(read_network(side.file), name=side.label), how)
        if not rebuild and _brought_runtime(side.file) == how.runtime:
            return load_runner(side.file, how.backend, how.device, mode=how.mode, name=side.label)
        return self._build_engine(side.file, side.label, sizes)

    def _build_engine(self, file: Path, label: str, sizes: Sequence[int]) -> Runner:
        import hashlib

        from polarprune_export import build_engine

        network = replace(read_network(file), name=label)
        batch = (min(sizes), sorted(sizes)[len(sizes) // 2], max(sizes))
        if is_bundle(file):
            profile = read_manifest(file).batch
            batch = (profile.min, profile.opt, profile.max)
        self._progress(f"building the engine of {label}", 0, 1)
        onnx, out = self._folder / "to-build.onnx", self._folder / "built.engine"
        onnx.write_bytes(network.data)  # the bytes that were verified
        report = build_engine(onnx, out_path=out, batch=batch, runtime=self._how.runtime)
        data = out.read_bytes()
        engine = EngineBytes(
            label, data, hashlib.sha256(data).hexdigest(), _precision(network),
            report.info.runtime, report.info.profiles, network,
        )  # fmt: skip
        return engine_runner(engine, self._how)


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _brought_runtime(file: Path) -> str | None:
    """What the engine of a bundle is for; None where there is none."""
    engine = read_manifest(file).engine if is_bundle(file) else None
    return None if engine is None else engine.runtime


def _precision(network: NetworkBytes) -> str:
    if network.precision is not None:
        return network.precision
    import onnx

    from polarprune_export.precisions import precision_of

    return precision_of(onnx.load_from_string(network.data))
