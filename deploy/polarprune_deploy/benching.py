"""`polarprune bench`: is a pruned network faster than what it was made from?

Networks that are not exported yet go through `polarprune_export.write_onnx` into a temporary
folder, both sides in the same way, so that the exporter is no part of the difference.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from polarprune.errors import ConfigError
from polarprune.manifest import is_bundle
from polarprune.run_folder import RUN_FILE, RunFolder, means_a_path
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.environment import describe_environment
from polarprune_deploy.explaining import make_explainer
from polarprune_deploy.latency import MIN_ROUNDS, compare_latency
from polarprune_deploy.latency_records import write_record
from polarprune_deploy.runners import Runner, check_backend, load_runner

if TYPE_CHECKING:
    from torch import nn

    from polarprune_deploy.explanation import Explanation

BATCHES = (1, 8, 64)


def bench(
    x: Path | str,
    against: Path | str | None = None,
    *,
    batches: Sequence[int] = BATCHES,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    rounds: int = MIN_ROUNDS,
    seed: int = 0,
    num_classes: int | None = None,
    image_size: int | None = None,
    record: Path | str | None = None,
    on_row: Callable[[Comparison], None] | None = None,
    on_explanation: "Callable[[Explanation], None] | None" = None,
) -> dict[str, list[dict[str, object]]]:
    """Compare `x` with `against` at each batch size; the `rows` of `bench --json`.

    Args:
        x: a run folder, a bundle, an ONNX file, or the name of a model.
        against: the same kinds; None, for a run, takes its own base architecture.
        batches: batch sizes; their verdicts hold jointly with 95 %.
        backend: "auto" or "onnxruntime".
        device: "cpu" or "cuda".
        threads: threads inside one operator; None takes every CPU the process may use.
        rounds: paired samples of each row, at least 40.
        seed: decides inputs and orders.
        num_classes: of a model by name; None takes the zoo's own.
        image_size: of a model by name, square; None takes the zoo's own.
        record: file that gets the environment and all raw samples as JSON lines.
        on_row: called with each comparison when it is done, the largest batch first.
        on_explanation: called with why, after each row; without it nothing is explained. With it,
            each row has an `explanation` too.

    Raises:
        ConfigError: nothing to compare with, or a value out of range.
        BackendUnavailable: the backend or device is not here.
    """
    candidate, rival = Path(x), None if against is None else Path(against)
    sizes = list(dict.fromkeys(batches))
    check_backend(backend, device)
    explainer = make_explainer(backend, device) if on_explanation is not None else None
    explanations: dict[int, dict[str, object]] = {}
    _check_request(candidate, rival, sizes, model_options=(num_classes, image_size))
    comparisons: dict[int, Comparison] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="polarprune-bench-")))
        exporter = _Exporter(folder, num_classes, image_size)
        files = [
            exporter.base_of(candidate) if rival is None else exporter.file_of(rival, "against"),
            exporter.file_of(candidate, "candidate"),
        ]
        runners: list[Runner] = [
            stack.enter_context(closing(load_runner(file, backend, device, threads)))
            for file in files
        ]
        # The largest first: should it be too slow to time, that is said before the rest is timed.
        for size in sorted(sizes, reverse=True):
            (comparison,) = compare_latency(
                runners, batch=size, rounds=rounds, seed=seed, family=len(sizes)
            )
            comparisons[size] = comparison
            if on_row is not None:
                on_row(comparison)
            if explainer is not None and on_explanation is not None:
                explanation = explainer.explain(runners[0], runners[1], batch=size, seed=seed)
                explanations[size] = {"explanation": explanation.as_json()}
                on_explanation(explanation)
    ordered = [comparisons[size] for size in sizes]
    if record is not None:
        write_record(
            Path(record),
            environment=describe_environment(),
            request={
                "x": str(x),
                "against": None if against is None else str(against),
                "batches": sizes,
                "rounds": rounds,
                "seed": seed,
            },
            comparisons=ordered,
        )
    return {"rows": [each.row() | explanations.get(each.batch, {}) for each in ordered]}


def _check_request(
    candidate: Path,
    rival: Path | None,
    sizes: Sequence[int],
    model_options: tuple[int | None, int | None],
) -> None:
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"batch sizes must be at least 1, got {list(sizes)}")
    for path in (candidate, rival):
        if path is not None and not path.exists():
            _check_model(str(path))
    if rival is None and not _is_run(candidate):
        raise ConfigError(
            f"{candidate} is no run, so it has no base to compare with; give --against"
        )
    models = [path for path in (candidate, rival) if path and not path.exists()]
    if not models and model_options != (None, None):
        raise ConfigError("--num-classes and --image-size belong to a model, and none is named")


def _check_model(name: str) -> None:
    """Refuse what is not there and is no model either.

    Raises:
        ConfigError: it says what there could have been.
    """
    if means_a_path(name):
        raise ConfigError(f"{name} does not exist; give a run folder, a bundle or a model")
    from polarprune.networks import input_size

    try:
        input_size(name)
    except ConfigError as error:
        raise ConfigError(f"there is no run or bundle {name}, and {error}") from error


def _is_run(path: Path) -> bool:
    return (path / RUN_FILE).is_file()


def _is_exported(path: Path) -> bool:
    return is_bundle(path) or path.suffix == ".onnx"


class _Exporter:
    """Turns what the user named into files that a runner loads; exports go to `folder`."""

    def __init__(self, folder: Path, num_classes: int | None, image_size: int | None):
        self._folder = folder
        self._model_options = {"num_classes": num_classes, "image_size": image_size}

    def file_of(self, path: Path, role: str) -> Path:
        """A bundle or ONNX file as it is; a run's small network or a model exported."""
        if _is_exported(path):
            return path
        if path.exists() and not _is_run(path):
            raise ConfigError(
                f"{path} is neither a run folder, a bundle nor an ONNX file; name one of these "
                "or a model"
            )
        from polarprune_export.export_sources import open_source

        options = dict.fromkeys(self._model_options) if _is_run(path) else self._model_options
        source = open_source(str(path), data=None, weights=None, **options)
        return self._export(source.network, source.input_shape, f"{role}-{source.name}")

    def base_of(self, path: Path) -> Path:
        """The architecture a run began with, exported.

        What the weights are does not matter to the time, so they are left as drawn.
        """
        run = RunFolder(path)
        return self._export(run.base_network(), run.input_shape, "base")

    def _export(self, network: "nn.Module", shape: tuple[int, int, int], stem: str) -> Path:
        import torch

        from polarprune_export import write_onnx

        file = self._folder / f"{stem}.onnx"
        write_onnx(network.eval(), file, torch.zeros(2, *shape))
        return file
