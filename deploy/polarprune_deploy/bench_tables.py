"""What `bench` shows people: one table, and below it the reasons of its verdicts."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.statistics import Percentile, RatioInterval, Verdict

if TYPE_CHECKING:
    from rich.table import Table

WORDS: dict[Verdict, str] = {
    "faster": "faster",
    "slower": "slower",
    "no_difference_shown": "no difference shown",
    "inconclusive": "inconclusive",
}


def bench_tables(comparisons: Sequence[Comparison]) -> Iterator["Table | str"]:
    """One row a batch size and quantity; then reasons, percentiles and what the table is of."""
    from polarprune.inspection.inspection_tables import make_table

    first = comparisons[0]
    table = make_table(
        f"{first.candidate} against {first.against}",
        ["batch", "time"],
        [first.against, first.candidate, "times as fast", "control", ""],
    )
    for one in comparisons:
        table.add_row(
            str(one.batch), "host latency", _ms(one.against_ms), _ms(one.ms),
            _interval(one.effect), _interval(one.control), WORDS[one.verdict],
        )  # fmt: skip
        device = one.device_time
        if device is not None:
            table.add_row(
                "", "device time", _ms(device.against_ms), _ms(device.ms),
                _interval(device.effect), _interval(device.control), WORDS[device.verdict],
            )  # fmt: skip
    yield table
    if any(_medians_disagree(one) for one in comparisons):
        yield (
            "Where the times of a row point the other way than its ratio: the times are medians of "
            "each side, the ratio is the median of pairs taken side by side; verdicts go by it."
        )
    yield from (_reason(one) for one in comparisons)
    for one in comparisons:
        if one.scenario == "single_stream":
            yield from _percentile_lines(one)
    yield _what(first)


def _medians_disagree(one: Comparison) -> bool:
    quantities = (one, one.device_time) if one.device_time is not None else (one,)
    return any((q.against_ms - q.ms) * (q.effect.speedup - 1) < 0 for q in quantities)


def _ms(value: float) -> str:
    return f"{value:.3f} ms"


def _interval(ratio: RatioInterval) -> str:
    return f"{ratio.speedup:.3f} [{ratio.ci_low:.3f}, {ratio.ci_high:.3f}]"


def _reason(one: Comparison) -> str:
    rate = one.batch * 1e3
    images = f"{rate / one.against_ms:,.0f} -> {rate / one.ms:,.0f} images/s"
    words = f"Batch {one.batch}: {images}; {WORDS[one.verdict]}: {one.reason}"
    if one.device_time is not None:
        device = one.device_time
        words += f"; on the device {WORDS[device.verdict]}: {device.reason}"
    return words + "."


def _percentile_lines(one: Comparison) -> Iterator[str]:
    names = {"against": one.against, "candidate": one.candidate}
    for side, found in one.percentiles().items():
        figures = ", ".join(map(_percentile, found)) or "too few runs for percentiles"
        yield (
            f"{names[side]}: {figures}; n = {one.single_runs(side)} runs, "
            "in the style of MLPerf's single stream."
        )


def _percentile(one: Percentile) -> str:
    return f"p{one.percent} {one.value:.3f} ms [{one.low:.3f}, {one.high:.3f}]"


def _what(first: Comparison) -> str:
    """What all rows share, in one sentence."""
    where = "this CPU, no claim about a GPU" if first.device == "cpu" else "this GPU"
    precision = first.precision
    if first.against_precision is not None and first.against_precision != precision:
        precision = f"{precision} against {first.against_precision}"
    mode = f", {first.settings['mode']}" if "mode" in first.settings else ""
    cold = f" ({first.evicted_bytes >> 20} MiB written before each run)"
    caches = f"{first.cache} caches{cold if first.cache == 'cold' else ''}"
    builds = f", {len(first.builds)} builds" if first.builds else ""
    return (
        f"{first.backend}{mode} on {where}, {precision}, {caches}, {first.effect.rounds} paired "
        f"rounds{builds}; the intervals hold together with 95 %, the controls' with 99 %."
    )
