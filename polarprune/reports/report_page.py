"""`polarprune report`: one page about a run, in one file that needs no other and no net.

Pictures are in it as PNG; style is in it (report_page.html); there is no script.
"""

from base64 import b64encode
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from polarprune.files.whole_files import write_whole
from polarprune.inspection.inspection_page import check_page_path
from polarprune.reports.epoch_plot import epochs_figure
from polarprune.reports.html_tables import Html, html
from polarprune.reports.measured_latency import MeasuredLatency
from polarprune.reports.plots import channels_figure, figure_png, figure_type, gates_figure
from polarprune.reports.report_facts import ReportFacts, read_facts
from polarprune.reports.report_latency import latency_section
from polarprune.reports.report_sections import (
    cuts_section,
    epochs_section,
    gates_section,
    head_section,
    layers_section,
    origin_section,
)

REPORT_FILE = "report.html"
_TEMPLATE = "report_page.html"
_DOTS_PER_INCH = 160
# A picture is never shown smaller than this, so that its words stay legible; it scrolls instead.
_LEAST_PIXELS_AN_INCH = 68
_PHONE_INCHES = 6.5  # narrower ones shrink to any screen


def write_report(run: Path, out: Path | None, latency: MeasuredLatency | None) -> Path:
    """Write the page of a run, whole or not at all; where it is.

    Args:
        out: None puts it into the run folder.
        latency: of this run, where it was measured.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        ConfigError: the page cannot be written there, or the run's network cannot be built here.
        RunFolderError: it is no run folder, or a file in it is broken.
    """
    path = run / REPORT_FILE if out is None else out
    figure_type()
    facts = read_facts(run, latency)
    check_page_path(path, "--out")
    # A name may hold half a character (a lone surrogate), which UTF-8 has no bytes for.
    write_whole(path, report_page(facts).encode("utf-8", "backslashreplace"))
    return path


def report_page(facts: ReportFacts) -> str:
    """The page as text."""
    template = files("polarprune.reports").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return Template(template).substitute(
        title=html(f"{facts.model} on {facts.data}"), body="\n".join(_body(facts))
    )


def _body(facts: ReportFacts) -> Iterator[str]:
    yield from head_section(facts)
    yield from epochs_section(facts, _epochs(facts))
    yield from gates_section(facts, _gates(facts))
    yield from cuts_section(facts)
    yield from layers_section(facts, _channels(facts))
    yield from latency_section(facts)
    yield from origin_section(facts)


def _epochs(facts: ReportFacts) -> Html:
    if not facts.epochs:
        return Html("")
    figure = epochs_figure(facts.epochs, facts.cuts, facts.headline, facts.found.dense_macs)
    return _picture(
        figure,
        "Accuracy on the test split and MACs over the steps of training; dashed lines are cuts",
    )


def _gates(facts: ReportFacts) -> Html | None:
    if facts.story is None or not facts.story.sites:
        return None
    words = "How likely each block and channel was open, over the steps; dashed lines are cuts"
    return _picture(gates_figure(facts.story), words)


def _channels(facts: ReportFacts) -> Html | None:
    if facts.is_dense or facts.found.macs is None or not facts.found.layers:
        return None
    words = "Output channels of each convolution before and after, in the order of depth"
    return _picture(channels_figure(facts.found), words)


def _picture(figure: Any, words: str) -> Html:
    width = figure.get_figwidth()
    least = 0 if width <= _PHONE_INCHES else round(width * _LEAST_PIXELS_AN_INCH)
    most = max(least, round(width * 96))
    content = b64encode(figure_png(figure, _DOTS_PER_INCH)).decode("ascii")
    return Html(
        f'<figure><div class="wide"><img alt="{html(words)}" '
        f'style="min-width:{least}px;max-width:{most}px" src="data:image/png;base64,{content}">'
        f"</div><figcaption>{html(words)}.</figcaption></figure>"
    )
