"""The latency section of a report: ratios with their intervals, or how to measure them."""

import math
import shlex
from collections.abc import Iterator

from polarprune.reports.html_tables import Html, html, paragraph, table
from polarprune.reports.measured_latency import LatencyRow, MeasuredLatency, Ratio
from polarprune.reports.report_facts import ReportFacts


def latency_section(facts: ReportFacts) -> Iterator[str]:
    """The parts of the section."""
    yield "<section><h2>Latency</h2>"
    if facts.latency is None:
        yield from _how_to_measure(facts)
    else:
        yield from _measured(facts.latency)
    yield "</section>"


def _how_to_measure(facts: ReportFacts) -> Iterator[str]:
    if facts.head.result is None:
        yield paragraph("Not measured: the run is not finished.")
        return
    if facts.is_dense:
        yield paragraph("Not measured: nothing was cut, so there is nothing to compare.")
        return
    run = shlex.quote(str(facts.path))
    yield paragraph("Not measured yet, so nothing is said of speed. This measures it:")
    yield f"<p><code>{html(f'polarprune bench {run} --batch 1,8,64')}</code></p>"


def _measured(latency: MeasuredLatency) -> Iterator[str]:
    low, high = _ends(latency.rows)
    yield table(
        ["batch", "times as fast", "verdict", "interval and control"],
        ["against, ms", "pruned, ms", "control", "rounds"],
        [_cells(row, low, high) for row in latency.rows],
    )
    yield paragraph(
        "Both networks were timed in turn in one process; times as fast is the other's time over "
        "the pruned network's, paired round by round (blue, with its interval; the line is 1). The "
        "control (grey) is the pruned network against itself.",
        "soft",
    )
    for row in latency.rows:
        yield paragraph(
            f"batch {row.batch}: {row.candidate} against {row.against} in {row.backend} on "
            f"{row.device}, {row.precision}; {row.label}; {row.verdict.replace('_', ' ')}: "
            f"{row.reason}; interval at {100 * row.confidence:.4g} %.",
            "soft",
        )
    cpus = "" if latency.usable_cpus is None else f", {latency.usable_cpus} CPUs to use"
    tools = ", ".join(f"{name} {v}" for name, v in latency.packages.items() if v is not None)
    machine = latency.cpu or latency.platform or "a machine that the record does not name"
    yield paragraph(f"Measured on {machine}{cpus}; {tools or 'versions not recorded'}.", "soft")


def _cells(row: LatencyRow, low: float, high: float) -> list[object]:
    verdict = Html(
        f'<span class="{html(row.verdict)}">{html(row.verdict.replace("_", " "))}</span>'
    )
    return [
        f"{row.batch:,}", _in_words(row.effect), verdict, Html(_bars(row, low, high)),
        f"{row.against_ms:.3f}", f"{row.ms:.3f}", _in_words(row.control), f"{row.rounds:,}",
    ]  # fmt: skip


def _in_words(ratio: Ratio) -> str:
    return f"{ratio.speedup:.3f} x [{ratio.ci_low:.3f}, {ratio.ci_high:.3f}]"


def _ends(rows: tuple[LatencyRow, ...]) -> tuple[float, float]:
    """The logarithms between which all bars lie, with some room."""
    ratios = [ratio for row in rows for ratio in (row.effect, row.control)]
    low = min(0.0, *(math.log(ratio.ci_low) for ratio in ratios))
    high = max(0.0, *(math.log(ratio.ci_high) for ratio in ratios))
    room = 0.05 * (high - low) + 0.01
    return low - room, high + room


def _bars(row: LatencyRow, low: float, high: float) -> str:
    def place(logarithm: float) -> float:
        return 100 * (logarithm - low) / (high - low)

    parts = [f'<i class="one" style="left:{place(0.0):.2f}%"></i>']
    for kind, ratio in (("range", row.effect), ("control", row.control)):
        left, right = place(math.log(ratio.ci_low)), place(math.log(ratio.ci_high))
        parts.append(f'<i class="{kind}" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>')
    return f'<span class="interval">{"".join(parts)}</span>'
