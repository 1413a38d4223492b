"""A latency record as a table: one line a cell and cut."""

from typing import Any

from rich.table import Table

from benchmarks.gpu.record_file import RecordFile

COLUMNS = (
    "network", "bound", "run", "batch", "cut", "kept MACs", "dense ms", "ms", "dense over cut",
    "control", "verdict", "device time", "verdict",
)  # fmt: skip


def latency_table(record: RecordFile) -> Table:
    """All rows of the record."""
    table = Table(title=record.head["what"])
    for column in COLUMNS:
        table.add_column(column)
    kept = {
        (line["network"], line["kept"], cut): f"{facts['macs_ratio']:.1%}"
        for line in record.all("networks")
        for cut, facts in line["cuts"].items()
    }
    for cell in record.all("cell"):
        head = [cell["network"], f"{cell['kept']:g}", f"{cell['precision']} {cell['mode']}"]
        head.append(str(cell["batch"]))
        if "failed" in cell:
            table.add_row(*head, "-", *"-----", f"failed: {cell['failed']}")
        for row in cell["rows"]:
            share = kept.get((cell["network"], cell["kept"], row["cut"]), "-")
            table.add_row(*head, row["cut"], share, *_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    if "not_timed" in row:
        return [*"----", f"not timed: {row['not_timed']}"]
    cells = [f"{row['against_ms']:.3f}", f"{row['ms']:.3f}", interval(row)]
    cells += [interval(row["control"]), row["verdict"].replace("_", " ")]
    told = row.get("device_time")
    if told is not None:
        cells += [interval(told), told["verdict"].replace("_", " ")]
    return cells


def interval(ratio: dict[str, float]) -> str:
    """A ratio and its bounds."""
    return f"{ratio['speedup']:.3f} [{ratio['ci_low']:.3f}, {ratio['ci_high']:.3f}]"
