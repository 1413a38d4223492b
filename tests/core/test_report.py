"""The page of `report`, read as a browser would, against the files it is made of."""

import base64
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from polarprune.errors import BackendUnavailable, ConfigError, RunFolderError
from polarprune.inspection.inspecting import inspect_run
from polarprune.reports import report_page
from polarprune.reports.measured_latency import LatencyRow, MeasuredLatency, Ratio
from polarprune.reports.report_page import write_report
from polarprune.runs.run_folder import RunFolder

NASTY = "</title><script>alert('x')</script>\"&${body} <img src=x onerror=y>\ud800"
CERTIFICATE = {
    "stage": "collapsed", "against": "gated, frozen", "inputs": "real", "n": 32,
    "tolerance": 1e-9, "max_rel_error": 4.21e-16, "max_abs_error": 1.5e-15,
    "top1_agreement": 1.0, "passed": True,
}  # fmt: skip
CUTS: list[dict[str, Any]] = [
    {
        "step": 31, "sites": {"layer1.1": 1, "conv1": 4}, "units": 5, "blocks_removed": 1,
        "macs_before": 2534560, "macs_after": 2011111, "agreement": 0.8765, "site_agreement": {},
        "max_rel_error": 4.21e-16, "certificate": CERTIFICATE, "top1_before": 0.5123,
        "top1_after": 0.4987, "a key of tomorrow": 1,
    },
    {
        "step": 40, "sites": {"layer2.1": 1}, "units": 1, "blocks_removed": 3,
        "macs_before": 2011111, "macs_after": 1022222, "agreement": 1.0,
        "site_agreement": {"conv1": 0.9876}, "max_rel_error": 7.5e-16,
        "certificate": {**CERTIFICATE, "inputs": "random", "max_rel_error": 7.5e-16},
        "top1_before": 0.6011, "top1_after": 0.6022,
    },
]  # fmt: skip
EPOCHS = [
    {"epoch": e, "step": 20 * e, "loss": 2.5 / e, "top1": 0.15 * e + 0.0123, "lr": 0.1,
     "macs": 2534560 - 1000 * e, "train_macs_ratio": 1 - e / 20, "images_per_s": 10.0}
    for e in range(1, 6)
]  # fmt: skip
ROW = LatencyRow(
    "onnxruntime", "cpu", "fp32", 8, "base", "candidate-resnet20", 2.125, 1.375,
    Ratio(1.545, 1.512, 1.587), Ratio(1.001, 0.991, 1.013), 0.975, 40, "no_difference_shown",
    "a reason", "host latency",
)  # fmt: skip
LATENCY = MeasuredLatency("A CPU", None, 2, {"onnxruntime": "1.32"}, (ROW,))


class Page(HTMLParser):
    """Elements, text and table rows of a page; tags that do not match are an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        """The cells of the one row that begins so."""
        [found] = [row for row in self.rows if row[0] == first]
        return found


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def drawn() -> None:
    """For tests that are about the pictures."""


@pytest.fixture(autouse=True)
def blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time that a page takes goes into them."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(report_page, "figure_png", lambda *_: b"")


@pytest.fixture
def run(pruned_run: Path, tmp_path: Path) -> Path:
    """A finished run with two cuts."""
    folder = tmp_path / "run"
    shutil.copytree(pruned_run, folder)
    write_lines(folder / "cuts.jsonl", CUTS)
    write_lines(folder / "metrics.jsonl", EPOCHS)
    return folder


def change(run: Path, **changes: Any) -> None:
    """Other values in run.json; of a dict those that are given, None takes out."""
    document = json.loads((run / "run.json").read_text())
    for key, value in changes.items():
        document[key] = {**document[key], **value} if key == "config" else value
    (run / "run.json").write_text(json.dumps(document))


def unfinished(run: Path) -> None:
    change(run, result=None)
    shutil.rmtree(run / "pruned")


def test_numbers_are_those_of_the_files(run: Path) -> None:
    change(run, seed=1234, versions={"torch": "9.8.7"}, device="cuda:3")
    page = Page(write_report(run, None, LATENCY))
    result = RunFolder(run).result
    for words in ("90.00 %", "70.0 %", "1234", "torch 9.8.7", "cuda:3", "3", "of 9"):
        assert words in page.text
    for kept, dense in (("macs", "dense_macs"), ("params", "dense_params")):
        assert f"{result[kept]:,} of {result[dense]:,}" in page.text
    for line in EPOCHS:
        assert [
            str(line["epoch"]), str(line["step"]), f"{line['loss']:.4f}",
            f"{100 * line['top1']:.2f} %", f"{line['macs']:,}",
            f"{100 * line['train_macs_ratio']:.1f} %",
        ] in page.rows  # fmt: skip
    for cut in CUTS:
        assert [
            f"{cut['step']}", f"{cut['units']}", f"{cut['blocks_removed']}",
            f"{cut['macs_before']:,}", f"{cut['macs_after']:,}", f"{cut['max_rel_error']:.1e}",
            f"{100 * cut['top1_before']:.2f} %", f"{100 * cut['top1_after']:.2f} %",
        ] in page.rows  # fmt: skip
        assert f"The certificate of the cut at step {cut['step']}" in page.text
    assert "on 32 real images" in page.text
    assert (
        "largest relative error 4.2e-16 (1.5e-15 absolute), 1e-09 allowed. It holds." in page.text
    )
    assert "12.35 % of the gates' decisions" in page.text
    assert "No real image was among them" in page.text
    assert "layer1.1: 1, conv1: 4" in page.text


def test_every_site_and_every_layer_is_there(run: Path) -> None:
    page = Page(write_report(run, None, None))
    found = inspect_run(RunFolder(run))
    last = json.loads((run / "openness.jsonl").read_text().splitlines()[-1])["open"]
    for site in found.sites:
        [row] = [row for row in page.rows if row[:2] == [site.name, site.kind]]
        kept = f"{site.kept}" if site.kind == "channel" else ("kept" if site.kept else "removed")
        assert row[2:4] == [str(site.units), kept]
        values = last[site.name]
        spread = (min(values), sum(values) / len(values), max(values))
        assert row[4:7] == [f"{value:.3f}" for value in spread]
    assert [row for row in page.rows if row[0] == "conv1" and row[7:8] == ["98.76 %"]]
    for layer in found.layers:
        cells = [layer.name, layer.block or "", str(layer.channels), str(layer.kept)]
        assert cells in page.rows
    assert "Residual blocks removed: 3 of 9: layer1.1, layer2.1, layer3.1." in page.text


def test_latency_is_shown_with_intervals_or_with_the_way_to_it(run: Path) -> None:
    page = Page(write_report(run, None, LATENCY))
    assert page.row("8") == [
        "8", "1.545 x [1.512, 1.587]", "no difference shown", "", "2.125", "1.375",
        "1.001 x [0.991, 1.013]", "40",
    ]  # fmt: skip
    assert "polarprune bench" not in page.text
    page = Page(write_report(run, None, None))
    assert f"polarprune bench {run} --batch 1,8,64" in page.text


def test_the_page_needs_nothing_from_elsewhere(drawn: None, run: Path) -> None:
    path = write_report(run, None, LATENCY)
    page = Page(path)
    assert not {"script", "link", "iframe", "object", "a", "form", "base"} & set(page.tags)
    assert re.findall(r"[a-z]+://|@import|url\(", path.read_text()) == []
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert len(sources) == 3
    for source in sources:
        kind, content = source.split(",", 1)
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as image:
            image.load()
            assert min(image.size) > 400


def test_no_name_is_taken_for_markup(drawn: None, run: Path) -> None:
    plain = Page(write_report(run, None, LATENCY))
    change(
        run,
        config={"data": NASTY.replace("/", ""), "method": NASTY, "epochs": NASTY, NASTY: NASTY},
        classes=[NASTY] * 10, versions={NASTY: NASTY}, device=NASTY, git=NASTY,
    )  # fmt: skip
    cuts = [{**cut, "sites": {NASTY[:-1]: 1}} for cut in CUTS]
    write_lines(run / "cuts.jsonl", cuts)
    nasty = MeasuredLatency(
        NASTY, NASTY, 2, {NASTY: NASTY},
        (LatencyRow(NASTY, NASTY, NASTY, *(8, NASTY, NASTY, 2.0, 1.0, ROW.effect, ROW.control),
                    0.9, 40, NASTY, NASTY, NASTY),),
    )  # fmt: skip
    page = Page(write_report(run, None, nasty))
    assert set(page.tags) == set(plain.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.text.count("alert('x')") >= 15
    assert "\\ud800" in page.text


def test_a_dollar_in_a_name_is_no_formula(drawn: None, run: Path) -> None:
    """Matplotlib would take $\\frac$ for a formula and fail on it."""
    change(run, config={"data": r"$\frac$"})
    assert r"$\frac$" in Page(write_report(run, None, None)).text


@pytest.mark.parametrize("left", ["all", "no lines", "run.json alone", "half a line"])
def test_an_unfinished_run_has_a_page_of_what_there_is(run: Path, left: str) -> None:
    unfinished(run)
    (run / "checkpoint").mkdir()
    if left == "half a line":
        for name in ("metrics.jsonl", "cuts.jsonl", "openness.jsonl"):
            with (run / name).open("a") as file:
                file.write('{"step": 99, "ep')
    elif left != "all":
        for path in run.glob("*.jsonl"):
            path.unlink()
    if left == "run.json alone":
        (run / "checkpoint").rmdir()
    page = Page(write_report(run, None, None))
    assert "This run is not finished" in page.text
    assert ("it has no checkpoint" in page.text) == (left == "run.json alone")
    assert ("No epoch is over yet" in page.text) == (left in ("no lines", "run.json alone"))
    assert ("Nothing was cut yet" in page.text) == (left in ("no lines", "run.json alone"))
    assert page.tags.count("img") == (2 if left in ("all", "half a line") else 0)
    assert "polarprune bench" not in page.text
    for site in inspect_run(RunFolder(run)).sites:
        assert [row for row in page.rows if row[:4] == [site.name, site.kind, str(site.units), "-"]]


def test_a_dense_run_shows_no_gates(run: Path) -> None:
    change(run, config={"target": 1.0})
    for name in ("cuts.jsonl", "openness.jsonl"):
        (run / name).unlink()
    page = Page(write_report(run, None, None))
    assert "trained dense, nothing is cut" in page.text
    assert "Nothing was cut." in page.text
    assert page.tags.count("img") == 1
    assert "Gates" not in page.text


def test_a_segmentation_is_told_in_its_own_figures(run: Path) -> None:
    result = RunFolder(run).result
    del result["top1"]
    more = {"miou": 0.8123, "dice": 0.8945, "pixel_agreement": 0.9911}
    change(run, config={"task": "segmentation"}, result=result | more)
    cuts = [{**cut, "miou_before": 0.7111, "miou_after": 0.7222} for cut in CUTS]
    write_lines(run / "cuts.jsonl", cuts)
    write_lines(run / "metrics.jsonl", [{"epoch": 1, "step": 90, "miou": 0.75, "dice": 0.8}])
    page = Page(write_report(run, None, None))
    for words in ("81.23 %", "89.45 %", "99.11 %", "71.11 %", "72.22 %"):
        assert words in page.text
    assert ["1", "90", "-", "75.00 %", "80.00 %", "-", "-"] in page.rows


def test_the_dense_run_of_a_demo_is_compared_with(run: Path) -> None:
    (run / "dense").mkdir()
    shutil.copy(run / "run.json", run / "dense")
    change(run / "dense", config={"target": 1.0}, result={**RunFolder(run).result, "top1": 0.9765})
    assert "trained dense: 97.65 %" in Page(write_report(run, None, None)).text
    change(run / "dense", config={"epochs": 99})
    assert "97.65 %" not in Page(write_report(run, None, None)).text


def test_a_mask_predictor_has_no_bound(run: Path) -> None:
    change(run, config={"target": None, "target_params": None, "method": "mask-predictor"})
    assert (
        "the method mask-predictor sets the cost itself" in Page(write_report(run, None, None)).text
    )


def test_a_network_of_another_run_is_called_that(run: Path) -> None:
    result = RunFolder(run).result
    change(run, result={**result, "macs": result["macs"] + 1})
    assert "they do not belong together" in Page(write_report(run, None, None)).text


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a line in the middle": (
        lambda run: (run / "metrics.jsonl").write_text('{"epoch": 1\n{"epoch": 2, "step": 3}\n'),
        r"metrics.jsonl, line 1: ",
    ),
    "a word for a number": (
        lambda run: write_lines(run / "metrics.jsonl", [{"epoch": 1, "step": "<b>"}]),
        r"metrics.jsonl, line 1: it.step is of the wrong kind \(str\)",
    ),
    "no object": (
        lambda run: (run / "cuts.jsonl").write_text("[1]\n"),
        r"cuts.jsonl, line 1: it is not an object",
    ),
    "NaN": (
        lambda run: (run / "cuts.jsonl").write_text('{"step": NaN}\n'),
        r"cuts.jsonl, line 1: NaN is no number",
    ),
    "openness beyond 1": (
        lambda run: write_lines(run / "openness.jsonl", [{"step": 1, "open": {"conv1": [7]}}]),
        r"openness.jsonl, line 1: openness is not numbers from 0 to 1",
    ),
    "openness of other gates": (
        lambda run: write_lines(run / "openness.jsonl", [{"step": 1, "open": {"conv1": [0.5]}}]),
        r"openness.jsonl tells of 0 units of the site layer1.0, and the network has 1",
    ),
    "a folder in place of a file": (
        lambda run: ((run / "cuts.jsonl").unlink(), (run / "cuts.jsonl").mkdir()),
        r"cuts.jsonl is not a file",
    ),
    "run.json of another kind": (
        lambda run: (run / "run.json").write_text("[]"),
        r"run.json is not an object",
    ),
    "a result of another kind": (
        lambda run: change(run, result={"macs": "many"}),
        r"run.json: it.result has no ",
    ),
    "no shape": (lambda run: change(run, input_shape=[3, -1, 8]), "input_shape that is not three"),
    "the small network is gone": (lambda run: shutil.rmtree(run / "pruned"), r"no pruned/"),
    "no run": (lambda run: (run / "run.json").unlink(), r"holds no run.json"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_run_is_one_error_and_leaves_the_older_page(run: Path, how: str) -> None:
    page = run / "report.html"
    page.write_text("older")
    spoil, message = BROKEN[how]
    spoil(run)
    before = sorted(run.iterdir())
    with pytest.raises(RunFolderError, match=message) as raised:
        write_report(run, None, None)
    assert "\n" not in str(raised.value)
    assert page.read_text() == "older"
    assert sorted(run.iterdir()) == before


def test_nothing_half_written_is_left(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(run.iterdir())

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_report(run, None, None)
    assert sorted(run.iterdir()) == before


def test_a_page_goes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert write_report(run, page, None) == page
    assert page.is_file()
    assert not (run / "report.html").exists()
    with pytest.raises(ConfigError, match=r"--out: the folder .* does not exist"):
        write_report(run, tmp_path / "none" / "page.html", None)
    with pytest.raises(ConfigError, match=r"--out takes a file"):
        write_report(run, tmp_path, None)


def test_without_matplotlib_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'polarprune\[report\]'"):
        write_report(run, None, None)
    assert not (run / "report.html").exists()
