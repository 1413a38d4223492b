"""The page of `inspect --html`, read as a browser would, against the analysis it shows."""

import dataclasses
import functools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import polarprune
from polarprune.errors import ConfigError
from polarprune.graph.normalise import normalise
from polarprune.graph.sites import Analysis, analyse
from polarprune.inspection.inspecting import NetworkInspection, inspect_source
from polarprune.inspection.inspection_page import inspection_page, write_page

Element = tuple[str, dict[str, str]]
SMALL = [("resnet20", 16), ("torchvision:mobilenet_v2", 32)]
LARGE = [
    ("torchvision:densenet121", 32),
    ("timm:hrnet_w18_small", 32),
    ("torchvision:mobilenet_v3_small", 32),
    ("torchvision:convnext_tiny", 32),
    ("torchvision:shufflenet_v2_x0_5", 32),
    ("torchvision:googlenet", 64),
]
MODELS = [*SMALL, *(pytest.param(*m, marks=pytest.mark.study) for m in LARGE)]


class Page(HTMLParser):
    """All elements of a page and all its text; tags that do not match are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in {attrs}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "rect", "path", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self._open and tag not in ("rect", "path", "meta"):
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def with_(self, name: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.elements if name in attributes]

    def of_class(self, name: str) -> list[dict[str, str]]:
        return [a for _, a in self.elements if name in a.get("class", "").split()]


@functools.cache
def inspected(name: str, size: int | None = None) -> NetworkInspection:
    found = inspect_source(name, image_size=size)
    assert isinstance(found, NetworkInspection)
    return found


def analysed(name: str, size: int) -> Analysis:
    net = polarprune.build_network(name).eval()
    plain = normalise(net, torch.zeros(2, 3, size, size))
    return analyse(plain, (1, 3, size, size), blocks=True, channels=True)


def channels(text: str) -> dict[int, int]:
    """Of "3:64 5:32" the channels of each site."""
    return {int(site): int(count) for site, count in (p.split(":") for p in text.split())}


@pytest.fixture(scope="module")
def resnet() -> NetworkInspection:
    return inspected("resnet20", 16)


@pytest.mark.parametrize(("name", "size"), MODELS)
def test_the_page_shows_the_analysis(name: str, size: int) -> None:
    analysis = analysed(name, size)
    page = Page(inspection_page(inspected(name, size)))

    rows = {a["id"]: a for a in page.with_("id") if a["id"].startswith("site-")}
    assert [row["data-name"] for row in rows.values()] == [site.name for site in analysis.sites]

    shown = [a["data-node"] for a in page.of_class("mix")]
    assert sorted(shown) == sorted(cost.mix.node for cost in analysis.costs)
    operators = {a["data-node"]: a for a in page.with_("data-node")}
    for cost in analysis.costs:
        operator = operators[cost.mix.node]
        assert operator["data-name"] == cost.mix.layer
        for way, positions in (("reads", cost.reads), ("writes", cost.writes)):
            expected = {s: n * analysis.sites[s].units for s, n in positions.items()}
            assert channels(operator[f"data-{way}"]) == expected
            assert {str(site) for site in expected} <= set(operator["data-sites"].split())

    for place, block in analysis.additions.items():
        inside = {n for n, a in operators.items() if str(place) in a["data-sites"].split()}
        mixes = {cost.mix.node for cost in analysis.costs}
        assert inside & mixes == block.private & mixes
        assert block.addition in inside
    frames = {int(frame["data-site"]) for frame in page.of_class("frame")}
    assert frames == set(analysis.additions)

    warned = [json.loads(a["data-refused"]) for a in page.of_class("warned")]
    reasons = {refusal.reason for refusal in analysis.refused}
    assert {reason for found in warned for reason in found} == reasons
    for refusal in analysis.refused:
        assert refusal.where in page.text
        assert refusal.reason in page.text


@pytest.mark.parametrize(("name", "size"), MODELS)
def test_what_joins_carries_what_is_read_of_it(name: str, size: int) -> None:
    found = inspected(name, size)
    operators = found.graph.operators
    for operator in operators:
        for source in operator.sources:
            if operators[source].kind != "join" or operator.detail in ("", "linear"):
                continue
            carried = dict(operators[source].writes)
            assert all(count <= carried[site] for site, count in operator.reads)
        if operator.name == "add" and operator.writes:
            # An option-A shortcut passes on less than the addition: the rest is zeros.
            for source in operator.sources:
                assert set(operators[source].writes) <= set(operator.writes)


def test_lines_join_operators_that_are_there(resnet: NetworkInspection) -> None:
    page = Page(inspection_page(resnet))
    lines = [(int(a["data-from"]), int(a["data-to"])) for a in page.with_("data-from")]
    operators = resnet.graph.operators
    expected = [(s, place) for place, operator in enumerate(operators) for s in operator.sources]
    assert sorted(lines) == sorted(expected)
    # The identity of the first block leads from the stem past two convolutions.
    assert [operators[end].name for end in (1, 4)] == ["conv1", "add"]
    assert (1, 4) in lines


@pytest.mark.slow
def test_a_dense_block_is_drawn_with_few_lines() -> None:
    graph = inspected("torchvision:densenet121", 32).graph
    lines = sum(len(operator.sources) for operator in graph.operators)
    assert lines < 1.5 * len(graph.operators)
    [last] = [o for o in graph.operators if o.node == "cat_5"]
    assert len(last.sources) == 2
    assert sum(count for _, count in last.writes) == 64 + 5 * 32


def test_a_finished_run_shows_what_is_left(pruned_run: Path) -> None:
    page = Page(inspection_page(inspected(str(pruned_run))))
    gone = {
        a["data-name"] for a in page.of_class("gone") if a.get("class", "").startswith("op mix")
    }
    assert gone == {f"layer{n}.1.conv{m}" for n in (1, 2, 3) for m in (1, 2)}
    additions = [a for a in page.of_class("gone") if a.get("class", "").startswith("op join")]
    assert len(additions) == 3
    assert "10 of 16" in page.text
    assert page.text.count("removed, shortcut left") == 3
    assert "cut to 10 to 21" in page.text  # layer2.0.conv1, of 16 to 32
    assert "residual blocks removed: 3 of 9" in page.text
    assert "top-1 on the test split 90.00 %" in page.text


def test_the_page_of_an_unfinished_run_says_so(pruned_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((pruned_run / "run.json").read_bytes())
    page = Page(inspection_page(inspected(str(tmp_path))))
    assert "The run is not finished" in page.text
    assert page.of_class("gone") == []


def test_no_name_is_taken_for_markup(resnet: NetworkInspection) -> None:
    nasty = "<script>alert('x')</script>\"&$title ${picture}"
    operators = tuple(
        dataclasses.replace(o, name=nasty, node=nasty, folded=(nasty,), refused=(nasty,))
        for o in resnet.graph.operators
    )
    found = dataclasses.replace(
        resnet,
        model=nasty,
        sites=tuple(dataclasses.replace(row, name=nasty) for row in resnet.sites),
        refused=(polarprune.inspection.inspecting.RefusalRow(nasty, nasty),),
        graph=dataclasses.replace(resnet.graph, operators=operators),
    )
    plain, page = Page(inspection_page(resnet)), Page(inspection_page(found))
    assert {tag for tag, _ in page.elements} - {"li", "ul"} <= {t for t, _ in plain.elements}
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert {a["data-name"] for a in page.with_("data-name")} == {nasty}
    assert {tuple(json.loads(a["data-refused"])) for a in page.with_("data-refused")} == {(nasty,)}


def test_the_page_needs_nothing_from_elsewhere(resnet: NetworkInspection) -> None:
    text = inspection_page(resnet)
    addresses = re.findall(r"[a-z]+://[^\"'\s)]*", text)
    assert set(addresses) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    page = Page(text)
    assert page.with_("src") == []
    assert all(a["href"].startswith("#") for a in page.with_("href"))
    assert not any(tag in ("link", "img", "iframe", "object") for tag, _ in page.elements)


@pytest.mark.slow
def test_links_and_ids_agree() -> None:
    page = Page(inspection_page(inspected("torchvision:convnext_tiny", 32)))
    ids = [a["id"] for a in page.with_("id")]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for a in page.with_("href")]
    assert links
    assert set(links) <= set(ids)


def test_equal_networks_have_equal_pages(resnet: NetworkInspection) -> None:
    again = inspect_source("resnet20", image_size=16)
    assert isinstance(again, NetworkInspection)
    assert inspection_page(again) == inspection_page(resnet)


def test_a_network_without_sites_has_a_page(resnet: NetworkInspection) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    from polarprune.inspection.operator_graph import operator_graph

    plain = normalise(net.eval(), torch.zeros(2, 3, 8, 8))
    analysis = analyse(plain, (1, 3, 8, 8), blocks=True, channels=True)
    graph = operator_graph(plain, analysis, frozenset())
    found = dataclasses.replace(resnet, sites=(), graph=graph)
    page = Page(inspection_page(found))
    assert len(page.of_class("op")) == 3  # input, convolution, output


def test_the_graph_is_no_part_of_the_json(resnet: NetworkInspection) -> None:
    document = json.loads(json.dumps(resnet.as_dict()))
    assert "graph" not in document
    assert document["sites"][0]["name"] == "layer1.0"


def test_the_page_is_written_whole_or_not_at_all(
    resnet: NetworkInspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    write_page(resnet, path)
    assert path.read_text(encoding="utf-8") == inspection_page(resnet)
    path.write_text("older")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_page(resnet, path)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_bundle_has_no_page(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resnet20 is a bundle"):
        write_page(inspect_source(str(bundle)), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("missing/page.html", "does not exist"), (".", "is a folder")]
)
def test_a_place_where_no_page_can_be_is_refused(
    name: str, words: str, resnet: NetworkInspection, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        write_page(resnet, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
