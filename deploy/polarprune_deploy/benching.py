"""`polarprune bench`: is a pruned network faster than what it was made from?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from polarprune.errors import ConfigError
from polarprune.option_values import check_range
from polarprune.runs.run_folder import BENCH_FILE
from polarprune_deploy.backends.input_making import taken_batches
from polarprune_deploy.backends.loading import How, check_how
from polarprune_deploy.backends.runners import Runner
from polarprune_deploy.bench_sides import SideOpener, check_source, is_run, options_as_trained
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.environment import describe_environment
from polarprune_deploy.latency import (
    MIN_ROUNDS,
    Progress,
    check_feasible,
    check_request,
    compare_latency,
)
from polarprune_deploy.latency_records import check_record_path, write_record
from polarprune_deploy.layers.explained_rows import RowExplainer, check_explainable
from polarprune_deploy.layers.explanation import Explanation
from polarprune_deploy.repeated_builds import combine_builds

BATCHES = (1, 8, 64)


@dataclass(frozen=True)
class Protocol:
    """How a bench measures.

    Attributes:
        rounds: paired samples of each row, at least 40.
        seed: decides inputs and orders.
        scenario: "offline", or "single_stream": batch 1, each run by itself, percentiles.
        cache: "warm" or "cold".
        builds: how often everything is loaded, compiled or built afresh.
        across_precisions: the sides may differ in precision.
        explain: once all is timed, say of each row where the time goes.
    """

    rounds: int = MIN_ROUNDS
    seed: int = 0
    scenario: str = "offline"
    cache: str = "warm"
    builds: int = 1
    across_precisions: bool = False
    explain: bool = False


def bench(
    x: Path | str,
    against: Path | str | None = None,
    *,
    batches: Sequence[int] | None = None,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    mode: str = "eager",
    precision: str | None = None,
    rounds: int = MIN_ROUNDS,
    seed: int = 0,
    scenario: str = "offline",
    cache: str = "warm",
    builds: int = 1,
    across_precisions: bool = False,
    explain: bool = False,
    num_classes: int | None = None,
    image_size: int | None = None,
    record: Path | str | None = None,
    on_row: Callable[[Comparison], None] | None = None,
    on_explanation: Callable[[Explanation], None] = lambda explanation: None,
    progress: Progress = lambda text, step, steps: None,
) -> dict[str, list[dict[str, object]]]:
    """Compare `x` with `against` at each batch size; the `rows` of `bench --json`.

    Of a run, the record of its last bench stays in the run folder (`bench.jsonl`), too.

    Args:
        x: a run folder, a bundle, an ONNX file, or the name of a model.
        against: the same kinds; None, for a run, takes its own base architecture.
        batches: batch sizes; their verdicts hold jointly with 95 %. None takes those of 1, 8 and 64
            that both sides take, or the one that they are fixed to.
        backend, device, threads, mode, precision: as in `loading.How`.
        rounds, seed, scenario, cache, builds, across_precisions, explain: as in `Protocol`; with
            `explain` each row has an `explanation`.
        num_classes: of a model by name; None takes that of a run beside it, else the zoo's own.
        image_size: likewise, the side of a square, pixels.
        record: file that gets the environment and all raw samples as JSON lines.
        on_row: called with each comparison when it is done.
        on_explanation: called with each explanation, after all rows.
        progress: told what is done, never inside of what is timed.

    Raises:
        ConfigError: nothing to compare with, a value out of range, or what can't be explained.
        BackendUnavailable: the backend or device is not here.
    """
    how = How(backend, device, threads, mode, precision)
    protocol = Protocol(rounds, seed, scenario, cache, builds, across_precisions, explain)
    candidate, rival = Path(x), None if against is None else Path(against)
    sizes = None if batches is None else list(dict.fromkeys(batches))
    options = {"num_classes": num_classes, "image_size": image_size}
    if explain:
        check_explainable(how, cache=cache, across_precisions=across_precisions)
    check_how(how)
    _check_protocol(protocol, sizes)
    _check_sources(candidate, rival, how, options)
    if record is not None:
        check_record_path(Path(record))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="polarprune-bench-")))
        options = options_as_trained((candidate, rival), options)
        opener = SideOpener(folder, how, options, progress)
        explainer = RowExplainer(how) if explain else None
        study = _Study(opener, protocol, candidate, rival, sizes, progress, explainer)
        comparisons = study.run(on_row, on_explanation)
    request = {
        "x": str(x),
        "against": None if against is None else str(against),
        "batches": [comparison.batch for comparison in comparisons],
        **asdict(how),
        **asdict(protocol),
    }
    explanations = {size: found.as_json() for size, found in study.explanations.items()}
    _keep(comparisons, explanations, request, record, candidate)
    return {"rows": [_row(each, explanations.get(each.batch)) for each in comparisons]}


def _row(comparison: Comparison, explanation: dict[str, object] | None) -> dict[str, object]:
    return comparison.row() | ({} if explanation is None else {"explanation": explanation})


class _Study:
    """All builds at all batch sizes."""

    def __init__(
        self,
        opener: SideOpener,
        protocol: Protocol,
        candidate: Path,
        rival: Path | None,
        sizes: list[int] | None,
        progress: Progress,
        explainer: RowExplainer | None,
    ) -> None:
        self._opener, self._protocol, self._sizes = opener, protocol, sizes
        self._progress, self._explainer = progress, explainer
        self.explanations: dict[int, Explanation] = {}
        mine = opener.candidate(candidate)
        other = opener.base_of(candidate) if rival is None else opener.rival(rival, mine)
        self._sides = (other, mine)

    def run(
        self,
        on_row: Callable[[Comparison], None] | None,
        on_explanation: Callable[[Explanation], None],
    ) -> list[Comparison]:
        """One comparison for each batch size, in the order asked for; then the explanations."""
        found: dict[int, list[Comparison]] = {}
        count = self._protocol.builds
        for build in range(count):
            with self._loaded() as runners:
                sizes = self._sizes or self._default_sizes(runners)
                if build == 0 and len(sizes) > 1:
                    # Should the largest be too slow to time, that is said before the rest is timed.
                    check_feasible(runners, max(sizes), self._protocol.rounds)
                if build == 0 and self._explainer is not None:
                    self._explainer.check(runners)
                for size in sizes:
                    one = self._compare(runners, size, len(sizes) * count, build)
                    found.setdefault(size, []).append(one)
                    if build == count - 1 and on_row is not None:
                        on_row(combine_builds(found[size]))
                if build == count - 1 and self._explainer is not None:
                    for size in sizes:
                        on_explanation(self._explain(self._explainer, runners, size))
        return [combine_builds(each) for each in found.values()]

    @contextmanager
    def _loaded(self) -> Iterator[list[Runner]]:
        with ExitStack() as stack:
            if self._protocol.builds > 1 and self._sides[0].network is not None:
                from polarprune_deploy.backends.runner_torch import fresh_compilation

                stack.enter_context(fresh_compilation())
            yield [
                stack.enter_context(
                    closing(
                        self._opener.load(
                            side, self._sizes or BATCHES, rebuild=self._protocol.builds > 1
                        )
                    )
                )
                for side in self._sides
            ]

    def _default_sizes(self, runners: Sequence[Runner]) -> list[int]:
        if self._protocol.scenario == "single_stream":
            return [1]
        sizes: tuple[int, ...] = BATCHES
        for runner in runners:
            sizes = taken_batches(runner, sizes)
        return list(sizes)

    def _explain(
        self, explainer: RowExplainer, runners: Sequence[Runner], size: int
    ) -> Explanation:
        self._progress(f"batch {size}: timing the layers", 0, 1)
        found = explainer.explain(runners, batch=size, seed=self._protocol.seed)
        self.explanations[size] = found
        return found

    def _compare(self, runners: Sequence[Runner], size: int, family: int, build: int) -> Comparison:
        protocol = self._protocol
        prefix = "" if protocol.builds == 1 else f"build {build + 1} of {protocol.builds}, "
        (comparison,) = compare_latency(
            runners,
            batch=size,
            rounds=protocol.rounds,
            seed=protocol.seed,
            family=family,
            scenario=protocol.scenario,
            cache=protocol.cache,
            across_precisions=protocol.across_precisions,
            progress=lambda text, step, steps: self._progress(prefix + text, step, steps),
        )
        return comparison


def _keep(
    comparisons: Sequence[Comparison],
    explanations: Mapping[int, Mapping[str, object]],
    request: dict[str, object],
    record: Path | str | None,
    candidate: Path,
) -> None:
    """Write the record where it was asked for, and beside the run that was measured."""
    paths = [] if record is None else [Path(record)]
    if is_run(candidate):
        paths.append(candidate / BENCH_FILE)
    if not paths:
        return
    environment = describe_environment()
    for path in paths:
        try:
            write_record(
                path, environment=environment, request=request, comparisons=comparisons,
                explanations=explanations,
            )  # fmt: skip
        except OSError:
            # A run on a disk that is only read can be measured; what was asked for was checked.
            if path.name != BENCH_FILE:
                raise


def _check_protocol(protocol: Protocol, sizes: Sequence[int] | None) -> None:
    check_range("--builds", protocol.builds, 1)
    for size in (1,) if sizes is None else sizes or (0,):
        check_request(size, protocol.rounds, protocol.scenario, protocol.cache)


def _check_sources(
    candidate: Path, rival: Path | None, how: How, model_options: dict[str, int | None]
) -> None:
    for path in (candidate, rival):
        if path is not None:
            check_source(path, how)
    if rival is None and not is_run(candidate):
        raise ConfigError(
            f"{candidate} is no run, so it has no base to compare with; give --against"
        )
    models = [path for path in (candidate, rival) if path and not path.exists()]
    if not models and any(value is not None for value in model_options.values()):
        raise ConfigError(
            "--num-classes and --image-size belong to a model, and none is named; leave them out"
        )
