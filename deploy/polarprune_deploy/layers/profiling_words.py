"""What a latency table found, in words and one table."""

from statistics import median
from typing import TYPE_CHECKING

from polarprune.latency_table import LatencyTable, Staircase

if TYPE_CHECKING:
    from rich.table import Table


_TOO_FAR = 0.15


def describe_table(table: LatencyTable) -> "list[str | Table]":
    """Which multiples pay on this device, and how well whole networks are foreseen."""
    from polarprune.inspection.inspection_tables import make_table

    worst = max(abs(each["predicted_ms"] / each["ms"] - 1) for each in table.calibration)
    shown = make_table(
        "Time a channel over that of the last class; a class: the largest divisor of the count",
        ["layer", "channels of its"],
        [str(multiple) for multiple in _largest(table)],
    )
    for staircase in table.staircases:
        costs = costs_by_class(staircase, _largest(table))
        cells = ["-" if cost is None else f"{cost:.2f}" for cost in costs]
        shown.add_row(str(staircase.geometry), staircase.side, *cells)
    words = [
        _multiples("inputs", table.multiples[0]),
        _multiples("outputs", table.multiples[1]),
        f"Of {len(table.calibration)} whole networks, which the table was fitted to, the worst is "
        f"foreseen {100 * worst:.0f} % off.",
    ]
    if worst > _TOO_FAR:
        words.append(
            "That is far: if other programs were running, measure again on a quiet machine."
        )
    return [shown, *words]


def _largest(table: LatencyTable) -> tuple[int, ...]:
    return tuple(sorted({*table.multiples[0], *table.multiples[1]}))


def _multiples(side: str, multiples: tuple[int, ...]) -> str:
    if len(multiples) == 1:
        return f"No multiple of {side} makes a difference here."
    listed = ", ".join(map(str, multiples[1:]))
    return f"Multiples of {side} that make a difference here: {listed}."


def costs_by_class(staircase: Staircase, multiples: tuple[int, ...]) -> list[float | None]:
    """Median milliseconds a channel of each class over those of the largest; None: no such count.

    A class is of the largest multiple that divides a count.
    """
    found: list[float | None] = []
    for place, multiple in enumerate(multiples):
        larger = multiples[place + 1 :]
        own = [
            ms / count
            for count, ms in zip(staircase.counts, staircase.ms, strict=True)
            if count % multiple == 0 and all(count % other for other in larger)
        ]
        found.append(median(own) if own else None)
    best = next((cost for cost in reversed(found) if cost is not None), None)
    return [None if cost is None or best is None else cost / best for cost in found]
