"""`polarprune report`: one page about a run."""

from pathlib import Path
from typing import Annotated

import typer

from polarprune.commands.options import AsJson
from polarprune.terminal import Terminal


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html", help="The page to write.", show_default="RUN/report.html"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one page about a run.

    One HTML file without anything else: accuracy, MACs and gates over time, every cut with its
    certificate, what is left of each layer, and the latency that `bench` recorded.
    """
    from polarprune.reports.report_page import write_report
    from polarprune.runs.run_folder import BENCH_FILE
    from polarprune_deploy.latency_record_reading import read_latency

    page = write_report(run, out, read_latency(run / BENCH_FILE))
    terminal = Terminal(as_json)
    terminal.show(f"Page: {page}")
    terminal.result({"report": str(page)})
