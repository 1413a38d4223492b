"""`polarprune bench`: whether pruned is faster, and whether a server keeps up."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from polarprune.commands import bench_options as opt
from polarprune.commands.options import AsJson, Classes, ImageSize, RunDevice
from polarprune.errors import ConfigError
from polarprune.terminal import Terminal, progress_on

if TYPE_CHECKING:
    from polarprune_deploy.comparisons import Comparison
    from polarprune_deploy.layers.explanation import Explanation
    from polarprune_deploy.load.figures import LoadFigures
    from polarprune_deploy.load.load_plan import LoadPlan
    from polarprune_deploy.load.pairs import ServerPair


def bench(
    context: typer.Context,
    x: opt.BenchSource = None,
    against: opt.Against = None,
    batch: opt.Batches = None,
    backend: opt.Backend = "auto",
    device: RunDevice = "cpu",
    threads: opt.Threads = None,
    mode: opt.Mode = "eager",
    precision: opt.TorchPrecision = None,
    scenario: opt.Scenario = None,
    cache: opt.Cache = "warm",
    rounds: opt.Rounds = 40,
    builds: opt.Builds = 1,
    across_precisions: opt.AcrossPrecisions = False,
    explain: opt.Explain = False,
    seed: opt.BenchSeed = 0,
    record: opt.Record = None,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    server: opt.Server = None,
    against_server: opt.AgainstServer = None,
    model: opt.ServedModel = None,
    clients: opt.Clients = None,
    rate: opt.Rate = None,
    seconds: opt.Seconds = None,
    token_file: opt.TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure whether pruned is faster.

    Both sides are timed in turn in one process; a row is their paired ratio with an interval, a
    control of the pruned side against itself, and a verdict. On a GPU the device's own time stands
    beside host latency. A RUN keeps its last record (bench.jsonl). --explain says why it is not
    faster, or not by more, and which three changes would save most. --server loads a server
    instead: percentiles of latency, throughput, and whether its answers stay right under load.
    """
    from polarprune_deploy.load.server_options import check_together

    check_together(_given(context))
    batches = None if batch is None else _numbers(batch, "--batch")
    if x is None:
        plan = _load_plan(scenario, clients, rate, seconds, batches, image_size, seed)
        _bench_server(
            str(server), against_server, plan, rounds, model, token_file, record, as_json
        )  # fmt: skip
        return

    from polarprune_deploy import benching
    from polarprune_deploy.bench_tables import bench_tables
    from polarprune_deploy.layers.explanation_tables import tell

    found: list[Comparison] = []
    explanations: list[Explanation] = []
    with progress_on(sys.stderr, still=True) as progress:
        answer = benching.bench(
            x, against, batches=batches, backend=backend,
            device=device, threads=threads, mode=mode, precision=precision,
            scenario="offline" if scenario is None else scenario,
            cache=cache, rounds=rounds, builds=builds, across_precisions=across_precisions,
            explain=explain, seed=seed, num_classes=num_classes, image_size=image_size,
            record=record, on_row=found.append, on_explanation=explanations.append,
            progress=lambda text, step, steps: progress(text, step, steps, {}),
        )  # fmt: skip
    terminal = Terminal(as_json)
    terminal.show(*bench_tables(found), *(part for each in explanations for part in tell(each)))
    terminal.result(answer)


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that are not at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name != "DEFAULT"}


def _load_plan(
    scenario: str | None,
    clients: str | None,
    rate: str | None,
    seconds: float | None,
    batches: list[int] | None,
    image_size: int | None,
    seed: int,
) -> "LoadPlan":
    from polarprune_deploy.load.load_plan import SECONDS, LoadPlan

    return LoadPlan(
        scenario=scenario or ("closed" if rate is None else "poisson"),
        clients=None if clients is None else tuple(_numbers(clients, "--clients")),
        rates=() if rate is None else tuple(_rates(rate)),
        seconds=SECONDS if seconds is None else seconds,
        batches=None if batches is None else tuple(batches),
        image_size=image_size,
        seed=seed,
    )


def _bench_server(
    server: str,
    against: str | None,
    plan: "LoadPlan",
    rounds: int,
    model: str | None,
    token_file: Path | None,
    record: Path | None,
    as_json: bool,
) -> None:
    from polarprune_deploy.load.load_tables import load_tables, pair_tables
    from polarprune_deploy.load.server_bench import bench_server, check_right, compare_servers

    loads: list[LoadFigures] = []
    pairs: list[ServerPair] = []
    with progress_on(sys.stderr, still=True) as shown:

        def progress(text: str, step: int, steps: int) -> None:
            shown(text, step, steps, {})

        if against is None:
            answer = bench_server(
                server, plan, model=model, token_file=token_file, record=record,
                on_row=loads.append, progress=progress,
            )  # fmt: skip
        else:
            answer = compare_servers(
                server, against, plan, rounds=rounds, model=model, token_file=token_file,
                record=record, on_row=pairs.append, progress=progress,
            )  # fmt: skip
    terminal = Terminal(as_json)
    terminal.show(*(load_tables(loads) if against is None else pair_tables(pairs)))
    terminal.result(answer)
    check_right(answer["rows"])


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option} must be whole numbers with commas, as 1,8,64, got {text!r}"
        ) from None


def _rates(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--rate must be numbers with commas, as 50,100, got {text!r}") from None
