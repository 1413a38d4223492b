"""`polarprune bench --server`: how fast does a server answer, and does it answer right?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from polarprune.errors import ConfigError, ServerError
from polarprune.option_values import check_range
from polarprune_deploy.environment import describe_environment
from polarprune_deploy.latency import MIN_ROUNDS
from polarprune_deploy.latency_records import check_record_path, write_lines
from polarprune_deploy.load.endpoint import parse_endpoint
from polarprune_deploy.load.figures import LoadFigures
from polarprune_deploy.load.load_plan import LoadPlan
from polarprune_deploy.load.measuring import measure
from polarprune_deploy.load.model_metadata import read_model
from polarprune_deploy.load.pairs import ServerPair, check_alike, compare
from polarprune_deploy.load.targets import look_at
from polarprune_deploy.load.traffic import run_loop

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many steps of it are done, and how many there are."""


def bench_server(
    url: str,
    plan: LoadPlan,
    *,
    model: str | None = None,
    token_file: Path | None = None,
    record: Path | None = None,
    on_row: Callable[[LoadFigures], None] = lambda figures: None,
    progress: Progress = lambda text, step, steps: None,
) -> dict[str, list[dict[str, object]]]:
    """Load a server of the Open Inference Protocol; the `rows` of `bench --server --json`.

    Args:
        url: http://host:port or https://host:port.
        plan: which loads.
        model: of the server; None takes the only one.
        token_file: holds a bearer token.
        record: file that gets the environment and all raw samples as JSON lines.
        on_row: called with the figures of each load when it is done.
        progress: told what is done between loads, never during one.

    Raises:
        ConfigError: values out of range, or a model that does not take such requests.
        ServerError: the server is down, or answers otherwise than the protocol says.
    """
    plan.check()
    endpoint = parse_endpoint(url, token_file)
    if record is not None:
        check_record_path(record)
    served = read_model(endpoint, model)
    found: list[LoadFigures] = []
    batches: Sequence[int | None] = plan.batches or (None,)
    steps = len(batches) * len(plan.loads())
    for batch in batches:
        target = look_at(
            endpoint, served, batch=batch, image_size=plan.image_size, seed=plan.seed
        )  # fmt: skip
        for clients, rate in plan.loads():
            progress("requests to the server, loads", len(found), steps)
            found.append(measure(target, plan, clients, rate))
            on_row(found[-1])
    if record is not None:
        _keep(record, found, plan, url)
    return {"rows": [figures.row() for figures in found]}


def compare_servers(
    url: str,
    against: str,
    plan: LoadPlan,
    *,
    rounds: int = MIN_ROUNDS,
    model: str | None = None,
    token_file: Path | None = None,
    record: Path | None = None,
    on_row: Callable[[ServerPair], None] = lambda pair: None,
    progress: Progress = lambda text, step, steps: None,
) -> dict[str, list[dict[str, object]]]:
    """Is one server faster than another? Closed loops on both in turn, with a control.

    Args:
        url: the server in question.
        against: what it is compared with.
        plan: clients and batches; how long a block is follows from how slow the servers are.
        rounds: paired samples of each row.
        model: of both servers; None takes the only one of each.
        token_file: for both servers.
        record: file that gets the environment and all blocks as JSON lines.
        on_row: called with each comparison when it is done.
        progress: told what is done between rows.

    Raises:
        ConfigError: values out of range, or servers that take different inputs.
        ServerError: a server is down, or answers otherwise than the protocol says.
        Refused: they are too slow for so many rounds.
    """
    plan.check()
    check_range("--rounds", rounds, MIN_ROUNDS)
    if plan.scenario != "closed":
        raise ConfigError("--against-server compares closed loops; leave --scenario and --rate out")
    ends = [parse_endpoint(each, token_file) for each in (url, against)]
    if record is not None:
        check_record_path(record)
    served = [read_model(end, model) for end in ends]
    batches: Sequence[int | None] = plan.batches or (None,)
    family = len(batches) * len(plan.loads())
    found: list[ServerPair] = []
    for batch in batches:
        candidate, other = (
            look_at(end, each, batch=batch, image_size=plan.image_size, seed=plan.seed)
            for end, each in zip(ends, served, strict=True)
        )
        check_alike(candidate, other)
        for clients, _ in plan.loads():
            progress("requests to both servers, rows", len(found), family)
            race = compare(
                candidate, other, clients=clients, rounds=rounds, family=family, seed=plan.seed
            )
            found.append(run_loop(race, exact_timers=False))
            on_row(found[-1])
    if record is not None:
        _keep_pairs(record, found, plan)
    return {"rows": [pair.row() for pair in found]}


def check_right(rows: Sequence[Mapping[str, object]]) -> None:
    """Wrong answers are no result, however fast they came, and neither are none.

    Raises:
        ServerError: there were such.
    """
    for row in rows:
        if row["wrong"]:
            raise ServerError(
                f"{row['wrong']} answers of {row['server']} were wrong: not those that the same "
                "requests had before the load"
            )
        if row.get("ok") == 0:
            raise ServerError(
                f"{row['server']} answered no request of a load with 200: {row['rejected']} were "
                f"refused, {row['failed']} failed; use fewer --clients, or a lower --rate"
            )


def _keep(path: Path, found: Sequence[LoadFigures], plan: LoadPlan, url: str) -> None:
    lines = [_head({"server": url}, plan)]
    for number, figures in enumerate(found):
        lines.append({"kind": "load", "load": number, **figures.row()})
        lines.append({"kind": "requests", "load": number, **figures.columns()})
    write_lines(path, lines)


def _keep_pairs(path: Path, found: Sequence[ServerPair], plan: LoadPlan) -> None:
    lines = [_head({"server": found[0].server, "against": found[0].against}, plan)]
    for number, pair in enumerate(found):
        lines.append({"kind": "pair", "pair": number, **pair.row()})
        lines += ({"kind": "block", "pair": number, **asdict(each)} for each in pair.blocks)
    write_lines(path, lines)


def _head(servers: Mapping[str, object], plan: LoadPlan) -> dict[str, object]:
    request = {**servers, **asdict(plan)}
    return {"kind": "environment", **describe_environment(), "request": request}
