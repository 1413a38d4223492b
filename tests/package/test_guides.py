"""The guides in docs/: links lead somewhere, commands and programs run in order as they stand.

What takes minutes is run on tiny folders, with fewer epochs. What needs Docker, a cluster or Triton
is not on these pages.
"""

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from documented_commands import (
    RUN_ALL,
    Block,
    Step,
    blocks,
    check_command,
    commands,
    run_program,
    shorten,
    verb_of,
    words_of,
)
from mask_trees import write_pairs
from PIL import Image
from served import Served

from polarprune.certificates import CUT_RTOL
from polarprune_deploy.statistics import Verdict
from polarprune_export.precisions import STAGES, TOLERANCES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = {"cli.md", "results.md", "structure.md"}
PAGES = {p.name: p.read_text("utf-8") for p in sorted(DOCS.glob("*.md")) if p.name not in GENERATED}
IMAGES, SEGMENTATION = PAGES["your-model-and-images.md"], PAGES["segmentation.md"]
READING, PRODUCTION = PAGES["reading-results.md"], PAGES["production.md"]
EXTENDING = PAGES["extending.md"]

# Tiny images and networks, one epoch, one batch size, a load of a second.
SHORTER = {
    "--image-size 224": "--image-size 16",
    "--epochs 30 --batch-size 32": "--epochs 1 --batch-size 16",
    "bench run --batch 1,8": "bench run --batch 1",
    "--model unet ": "--model unet-d2-w4 ",
    "--image-size 512 --crop-size 256 --epochs 60": "--image-size 32 --crop-size 16 --epochs 1",
    "--data digits --image-size 16 --epochs 12": "--data digits --image-size 8 --epochs 1",
    "--clients 1,8 --seconds 10": "--clients 1 --seconds 1",
}
# In place of `profile`, which takes most of a minute of the smallest network: times made up.
TABLE = """
import torch, polarprune, mynet
from pathlib import Path
from polarprune.latency_table import LatencyTable, LayerPoint

gated = polarprune.attach_gates(mynet.build(2), torch.zeros(2, 3, 16, 16))
times = tuple(LayerPoint(i, o, 1e-4 * i * o) for i in (1, 64) for o in (1, 64))
points = {cost.geometry: times for cost in gated.analysis.costs}
LatencyTable({"model": "mynet:build"}, ((1,), (1,)), points, 1.0, 0.01).write(Path("table.json"))
"""
CLASSES, SIDE = ("bee", "wasp"), 16


def write_photos(folder: Path) -> None:
    """Two classes that differ in their colour, 20 images of each to train on, and one beside."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for index, name in enumerate(CLASSES):
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
                pixels[..., index] += 120
                Image.fromarray(pixels).save(place / f"{number}.png")
    shutil.copy(place / "0.png", folder / "photo.jpg")  # told by its content, not by its name


def steps_of(page: str, folder: Path) -> list[Step]:
    """Commands and programs up to the first that serves; a program with a name is a file."""
    found: list[Step] = []
    for block in blocks(shorten(page, SHORTER)):
        if block.info == "python":
            named = re.match(r"# (\w+\.py)\n", block.text)
            if named is None:
                found.append(block.text)
            else:
                (folder / named[1]).write_text(block.text)
        for line in block.lines if block.info == "sh" else []:
            if line.startswith("polarprune serve"):
                return found
            words = words_of(line)
            found.append(TABLE if words[0] == "profile" else words)
    return found


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which everything of the guides was run that needs torch, page after page."""
    folder = tmp_path_factory.mktemp("guides")
    write_photos(folder)
    write_pairs(folder / "cells")
    steps = [step for page in (IMAGES, SEGMENTATION, EXTENDING) for step in steps_of(page, folder)]
    steps += [block.text for block in blocks(READING, "python")]
    (folder / "said.txt").write_text(run_program(RUN_ALL, folder, steps))
    return folder


def links(page: str) -> list[tuple[str, str]]:
    """(file, heading) of each link to a file of ours; either may be empty."""
    found = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page)
    assert found
    return found


def anchors(page: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name
)
def test_every_link_leads_to_something_that_exists(path: Path) -> None:
    if path.name in GENERATED and "](" not in path.read_text("utf-8"):
        return
    for target, heading in links(path.read_text("utf-8")):
        goal = path.parent / target if target else path
        assert goal.exists(), (target, heading)
        if heading:
            assert heading in anchors(goal.read_text("utf-8")), (target, heading)


def test_the_readme_links_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    named = {target for target, _ in links(readme)}
    assert {f"docs/{path.name}" for path in DOCS.glob("*.md")} <= named


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_the_program_takes(page: str) -> None:
    found = commands(blocks(PAGES[page], "sh"))
    assert found
    for words in found:
        check_command(words)
    for spoken in re.findall(r"`polarprune ([a-z][^`]*)`", PAGES[page]):
        verb, words = verb_of(spoken.split())
        known = {name for option in verb.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= known, spoken


def test_every_option_that_is_named_is_one_of_some_verb() -> None:
    known = set(re.findall(r"--[a-z][a-z-]*", (DOCS / "cli.md").read_text("utf-8")))
    for name, page in PAGES.items():
        inline = re.findall(r"`[^`\n]+`", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S))
        named = {option for text in inline for option in re.findall(r"--[a-z][a-z-]*", text)}
        assert named <= known, name


def test_every_shortening_is_of_something_that_the_guides_say() -> None:
    assert [long for long in SHORTER if not any(long in page for page in PAGES.values())] == []


def test_pages_are_short() -> None:
    assert {name for name, page in PAGES.items() if page.count("\n") > 90} == set()


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with this head."""
    table = page[page.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_what_the_program_is_quoted_with_it_says() -> None:
    folders = ("polarprune", "export", "deploy")
    sources = [path.read_text("utf-8") for name in folders for path in (ROOT / name).rglob("*.py")]
    joined = "".join(re.sub(r'"\s*\n\s*f?"', "", source) for source in sources)
    quoted = [row[0].strip("`") for row in rows(IMAGES, "it says")]
    assert len(quoted) >= 5
    assert [words for words in quoted if words not in joined] == []


def test_tolerances_are_those_of_the_program() -> None:
    said = {row[0].strip("`"): row[2] for row in rows(READING, "link")}
    assert float(said["cut at step N"].split(",")[0]) == CUT_RTOL
    for precision, stage in STAGES.items():
        assert float(said[stage]) == TOLERANCES[precision]


def test_all_verdicts_are_explained() -> None:
    assert {row[0].strip("`") for row in rows(READING, "verdict")} == set(get_args(Verdict))


@pytest.mark.slow
def test_your_model_and_images_leads_to_a_bundle_and_a_verdict(worked: Path) -> None:
    said = (worked / "said.txt").read_text()
    assert re.search(r"^\$ bench run --batch 1$", said, re.M)
    assert json.loads((worked / "run" / "run.json").read_text())["result"]["macs_ratio"] <= 0.5
    manifest = json.loads((worked / "bundle" / "manifest.json").read_text())
    assert manifest["classes"] == list(CLASSES)
    assert {link["inputs"] for link in manifest["certificate"]} >= {"random", "real"}
    fast = json.loads((worked / "fast-run" / "run.json").read_text())["result"]
    assert fast["latency_ratio"] <= 0.6


@pytest.mark.slow
def test_every_key_of_a_cut_is_explained(worked: Path) -> None:
    explained = {
        key for row in rows(READING, "key") for key in re.findall(r"`([a-z_0-9]+)`", row[0])
    }
    [cut] = [json.loads(line) for line in (worked / "run" / "cuts.jsonl").read_text().splitlines()]
    assert explained == set(cut)


@pytest.mark.slow
def test_masks_are_served(worked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(worked)
    [words] = [w for w in commands(blocks(SEGMENTATION, "sh")) if w[0] == "serve"]
    [client] = blocks(SEGMENTATION, "python")
    with Served(Path(words[1]), *words[2:]) as server:
        server.wait_ready()
        run_program(on_its_ports(client.text, server), worked)
    with Image.open("mask.png") as mask:
        assert mask.size == (32, 32)
        assert set(np.unique(np.asarray(mask))) <= {0, 1}


def on_its_ports(text: str, server: Served) -> str:
    """The text with the ports that this server has, in place of those it would have alone."""
    for number, port in (("8000", "http"), ("8002", "metrics")):
        text = text.replace(f"127.0.0.1:{number}", server.address(port))
    return text


def answer_of(line: str, folder: Path) -> bytes:
    """What a server answers to a line of curl's; only 200 will do."""
    token = (folder / "token").read_text().strip()
    fail, *words = [word.replace("$(cat token)", token) for word in words_of(line)]
    assert (line.split()[0], fail) == ("curl", "--fail")
    options = dict(zip(words[:-1:2], words[1::2], strict=True))
    headers = dict([options["--header"].split(": ")]) if "--header" in options else {}
    body = options.get("--data-binary")
    data = None if body is None else (folder / body.removeprefix("@")).read_bytes()
    request = urllib.request.Request(words[-1], data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def run_in_shell(lines: list[str], folder: Path) -> None:
    subprocess.run(["sh", "-e", "-c", "\n".join(lines)], cwd=folder, check=True, timeout=60)


@pytest.mark.slow
def test_production_is_served_asked_and_stopped(
    worked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(worked)
    start, asked, newer, fleet = blocks(shorten(PRODUCTION, SHORTER), "sh")
    verify, *shell, serve = start.lines
    assert commands([start]) == [words_of(verify), words_of(serve)]
    run_in_shell(shell, worked)
    run_program(RUN_ALL, worked, [words_of(verify)])
    _, source, *options = words_of(serve)
    with Served(Path(source), *options) as server:
        server.wait_ready()
        *questions, load = [on_its_ports(line, server) for line in asked.lines]
        ready, classified, metrics = (answer_of(line, worked) for line in questions)
        assert json.loads(ready) == {"ready": True}
        assert {each["name"] for each in json.loads(classified)["classes"]} == set(CLASSES)
        for name in re.findall(r"`((?:nv|polarprune)_[a-z_]+)`", PRODUCTION):
            assert f"\n# TYPE {name} ".encode() in metrics, name
        run_program(RUN_ALL, worked, [words_of(load)])
        for line, version, times in zip(newer.lines, ("2", "1"), (1, 2), strict=True):
            run_in_shell([line], worked)
            server.signal(signal.SIGHUP)  # sooner than it would look by itself
            server.wait_for("serving", times, model="photos", version=version)
    check_fleet(fleet, worked)


def check_fleet(block: Block, folder: Path) -> None:
    """Both commands write what the page says."""
    run_program(RUN_ALL, folder, list(commands([block])))
    assert (folder / "repository" / "photos" / "1" / "model.onnx").is_file()
    assert (folder / "kserve" / "bundles" / "mynet-build" / "model.onnx").is_file()
    assert (folder / "kserve" / "Dockerfile").is_file()
    assert (folder / "kserve" / "inferenceservice.yaml").is_file()
    assert (folder / "fleet" / "inferenceservice.yaml").is_file()


@pytest.mark.slow
def test_a_method_of_ones_own_keeps_the_first_units(worked: Path) -> None:
    [words] = commands(blocks(EXTENDING, "sh"))
    run = json.loads((worked / words[-1] / "run.json").read_text())
    assert run["config"]["method"] == "narrow:Narrow"
    assert 0.4 < run["result"]["macs_ratio"] <= 0.5


def test_excerpts_are_in_the_files_that_they_are_of() -> None:
    found = [block for block in blocks(EXTENDING) if block.info.startswith("python ")]
    assert found
    for block in found:
        assert block.text in (ROOT / block.info.split()[1]).read_text("utf-8")


@pytest.mark.slow
def test_the_line_that_is_shown_teaches_an_operator(tmp_path: Path) -> None:
    [program] = [b.text for b in blocks(EXTENDING, "python") if "torch.erf" in b.text]
    [line, table] = re.findall(r'`("erf": torch\.erf,)` in `([A-Z_]+)`', EXTENDING)[0]
    with contextlib.redirect_stdout(io.StringIO()) as before:
        exec(compile(program, "program of a page", "exec"), {"__name__": "page"})
    [said] = re.findall(r"`(erf: operator[^`]*)`", EXTENDING)
    assert before.getvalue() == f"0 sites {said}\n"
    shutil.copytree(ROOT / "polarprune", tmp_path / "polarprune")
    tables = tmp_path / "polarprune" / "graph" / "operator_tables.py"
    old = tables.read_text("utf-8")
    new = re.sub(rf"^({table}: .*{{)$", rf"\1\n    {line}", old, flags=re.M)
    assert new != old
    tables.write_text(new, "utf-8")
    answer = subprocess.run(  # with the copy imported, and not what another process has
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "1 sites"
