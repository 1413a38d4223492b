"""How well does a latency table foresee random cuts on a GPU, beside a straight line in MACs?

    python -m benchmarks.gpu predicted                      # ResNet-50, batch 1, fp16
    python -m benchmarks.gpu predicted --table FILE         # a table of `polarprune profile`
    python -m benchmarks.gpu predicted --dry-run

benchmarks/predicted_latency.py with layers and networks in torch: the table, then random decisions,
as many with counts as they fall as with counts aligned to 8, all timed in turn as CUDA graphs. The
table is written beside the record, for `train --latency-table`.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.record_file import RecordFile
from benchmarks.gpu.recorded_timer import RecordedTimer
from benchmarks.predicted_latency import ALIGNMENTS, errors, measure
from polarprune import GatedNetwork
from polarprune.errors import ConfigError
from polarprune.latency_table import LatencyTable, read_latency_table
from polarprune_deploy.layers.layer_timers import LayerTimer
from polarprune_deploy.layers.profiling import ProfileRequest, profile_network

# Whole networks take so long together, seconds: captures, warm-ups, 40 rounds of all.
_A_NETWORK = 3.0


def predict(
    gated: GatedNetwork, head: dict[str, Any], request: ProfileRequest, timer: LayerTimer,
    record: RecordFile, deadline: Deadline, n: int, given: Path | None,
) -> None:  # fmt: skip
    """The table and the rows, as far as they are not recorded.

    Args:
        n: random networks of each alignment.
        given: a table made before.

    Raises:
        TimeIsUp: not all fitted.
        ConfigError: the given table is of another device, batch or precision.
    """
    table = _recorded_table(record)
    if table is None:
        table = (
            _made(gated, head, request, timer, record, deadline)
            if given is None
            else _checked(read_latency_table(given), request, timer)
        )
        record.add("table", document=table.as_dict())
    if record.path is not None:
        table.write(record.path.with_suffix(".table.json"))
    if next(record.all("networks"), None) is None:
        deadline.check(_A_NETWORK * n * len(ALIGNMENTS), "the random networks")
        rows = measure(gated, table, n, request.seed, timer)
        record.add("networks", device=record.head["device"], n=n, rows=rows)


def _made(
    gated: GatedNetwork, head: dict[str, Any], request: ProfileRequest, timer: LayerTimer,
    record: RecordFile, deadline: Deadline,
) -> LatencyTable:  # fmt: skip
    def show(what: str, done: int, of: int) -> None:
        if what == "whole networks" and done == 1:
            deadline.check(_A_NETWORK * of, "the whole networks that the table is fitted on")
        if what == "layers":
            print(f"{what}: {done} of {of} ({deadline.left():.0f} s left)", flush=True)

    return profile_network(
        gated, head, request, show, RecordedTimer(timer, record, deadline)
    )  # fmt: skip


def _checked(table: LatencyTable, request: ProfileRequest, timer: LayerTimer) -> LatencyTable:
    wanted = {**timer.head, "batch": request.batch}
    for key, value in wanted.items():
        if table.head.get(key) != value:
            raise ConfigError(
                f"--table was measured with {key} {table.head.get(key)!r}, and here it is "
                f"{value!r}; leave it out to make one"
            )
    return table


def _recorded_table(record: RecordFile) -> LatencyTable | None:
    line = next(record.all("table"), None)
    if line is None:
        return None
    with TemporaryDirectory() as folder:
        file = Path(folder) / "table.json"
        file.write_text(json.dumps(line["document"]))
        return read_latency_table(file)


def prediction_table(record: RecordFile) -> Table:
    """Median and worst errors of both, a line an alignment."""
    show = Table(title=record.head["what"])
    for column in ("networks", "n", "table, median", "worst", "line in MACs, median", "worst"):
        show.add_column(column)
    for line in record.all("networks"):
        for align in ALIGNMENTS:
            rows = [row for row in line["rows"] if row["align"] == align]
            found = [errors(rows, which) for which in ("table_ms", "line_ms")]
            cells = [f"{each[key]:.1%}" for each in found for key in ("median", "worst")]
            name = f"aligned to {align}" if align > 1 else "counts as they fall"
            show.add_row(name, str(len(rows)), *cells)
    return show
