"""What `bench --server` shows people: a table, remarks, and what the figures are."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from polarprune_deploy.bench_tables import WORDS
from polarprune_deploy.load.figures import BLOCKS, LoadFigures
from polarprune_deploy.load.pairs import ServerPair
from polarprune_deploy.load.samples import Outcome
from polarprune_deploy.statistics import PERCENTILE_FLOORS, RatioInterval, allowed_percentiles

if TYPE_CHECKING:
    from rich.table import Table


def load_tables(found: Sequence[LoadFigures]) -> Iterator["Table | str"]:
    """One row a load; then what must be known about it, and what all figures are."""
    from polarprune.inspection.inspection_tables import make_table

    table = make_table(
        f"{found[0].model} of {found[0].server}",
        ["load", "batch"],
        ["images/s", "p50 ms", "p90 ms", "p99 ms", "ok", "refused", "failed", "wrong"],
    )
    for one in found:
        values = {
            each.percent: each.value for each in allowed_percentiles(one.latencies_ms(Outcome.OK))
        }
        table.add_row(
            _load(one),
            str(one.batch),
            _throughput(one),
            *(_ms(values.get(percent)) for percent in PERCENTILE_FLOORS),
            *(f"{one.count(outcome):,}" for outcome in list(Outcome)[1:]),
        )
    yield table
    for one in found:
        yield from (f"{_load(one)}, batch {one.batch}: {remark}." for remark in one.remarks())
        if refused := one.latencies_ms(Outcome.REJECTED):
            yield f"{_load(one)}: a refusal took {max(refused):.1f} ms at most."
    yield _what(found)


def pair_tables(found: Sequence[ServerPair]) -> Iterator["Table | str"]:
    """One row a number of clients and batch size; then the reasons of the verdicts."""
    from polarprune.inspection.inspection_tables import make_table

    first = found[0]
    table = make_table(
        f"{first.server} against {first.against}",
        ["clients", "batch"],
        ["against ms", "ms", "times as fast", "control", ""],
    )
    for one in found:
        table.add_row(
            str(one.clients), str(one.batch), f"{one.against_ms:.3f}", f"{one.ms:.3f}",
            _interval(one.effect), _interval(one.control), WORDS[one.verdict],
        )  # fmt: skip
    yield table
    for one in found:
        yield f"{_clients(one.clients)}, batch {one.batch}: {WORDS[one.verdict]}: {one.reason}."
    yield (
        f"Time for one answer while all clients are busy, in {first.effect.rounds} paired rounds "
        f"of {first.block_seconds:.2f} s a side; the intervals hold together with 95 %, the "
        "controls' with 99 %."
    )


def _load(one: LoadFigures) -> str:
    return _clients(one.clients) if one.rate is None else f"Poisson {one.rate:g}/s"


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _throughput(one: LoadFigures) -> str:
    each, batch = one.throughput(), one.batch
    whole = f"{batch * one.requests_per_second:,.1f}"
    return f"{whole} [{batch * each.low:,.1f}, {batch * each.high:,.1f}]"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(ratio: RatioInterval) -> str:
    return f"{ratio.speedup:.3f} [{ratio.ci_low:.3f}, {ratio.ci_high:.3f}]"


def _what(found: Sequence[LoadFigures]) -> str:
    costs = " to ".join(
        dict.fromkeys(f"{cost:.0f}" for cost in (min(_cpu(found)), max(_cpu(found))))
    )
    poisson = found[0].rate is not None
    start = "was due" if poisson else "was sent"
    style = " In the style of MLPerf's server scenario, no MLPerf result." if poisson else ""
    return (
        f"Latency from when a request {start} to its answer's last byte, of right answers only, "
        f"none trimmed; {found[0].seconds:g} s each behind a warm-up; the interval of throughput "
        f"is that of the median of {BLOCKS} blocks of time. The client used {costs} us of CPU a "
        f"request.{style}"
    )


def _cpu(found: Sequence[LoadFigures]) -> list[float]:
    return [one.cpu_us for one in found]
