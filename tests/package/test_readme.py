"""The README's blocks run as they stand; what takes minutes runs with fewer epochs."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# One epoch in place of the README's, fewer rows of latency, and an engine for one batch size.
SHORTER = {
    "--epochs 12": "--epochs 1",
    "epochs, batch_size = 12, 32": "epochs, batch_size = 1, 32",
    "--batch 1,8,64": "--batch 1",
    "--format trt": "--format trt --batch 1:1:1",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def shorten(block: str) -> str:
    for long, short in SHORTER.items():
        block = block.replace(long, short)
    return block


def commands(blocks_of_commands: list[str]) -> list[list[str]]:
    """Every `polarprune ...` line in words, that first word left out."""
    lines = [line for block in blocks_of_commands for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("polarprune ")]


# All in one process: most of a verb's time on a tiny network is the import of torch.
RUN_ALL = """
import json, sys
from polarprune.cli import main
for words in json.load(sys.stdin):
    print("$", *words, flush=True)
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def run_program(program: str, folder: Path, words: list[list[str]] | None = None) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        input=json.dumps(words),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_every_shortening_is_of_something_that_the_readme_says() -> None:
    assert [long for long in SHORTER if long not in README] == []


@pytest.mark.slow
def test_the_pipeline_block_runs(tmp_path: Path) -> None:
    (pipeline,) = (block for block in blocks("sh") if "polarprune verify" in block)
    words = commands([shorten(pipeline)])
    assert len(words) == len(pipeline.splitlines())
    output = run_program(RUN_ALL, tmp_path, words)
    assert [line for line in output.splitlines() if line.startswith("$ bench")]
    assert (tmp_path / "run" / "pruned" / "network.json").is_file()
    assert (tmp_path / "bundle" / "model.onnx").is_file()
    assert (tmp_path / "bundle" / "model.tensorrt_rtx.engine").is_file()


@pytest.mark.slow
def test_the_python_block_runs(tmp_path: Path) -> None:
    (block,) = blocks("python")
    output = run_program(shorten(block), tmp_path)
    figures = re.fullmatch(r"(\d+) of (\d+) MACs", output.strip())
    assert figures is not None, output
    assert int(figures[1]) <= 0.5 * int(figures[2])
    assert (tmp_path / "small.onnx").is_file()


def test_every_command_names_a_verb_and_options_that_exist(tmp_path: Path) -> None:
    found = commands(blocks("sh"))
    verbs = sorted({words[0] for words in found})
    output = run_program(RUN_ALL, tmp_path, [[verb, "--help"] for verb in verbs])
    helps = dict(zip(verbs, re.split(r"^\$ .*$", output, flags=re.M)[1:], strict=True))
    assert len(found) > 5
    for verb, *words in found:
        known = re.findall(r"--[a-z0-9][a-z0-9-]*", helps[verb])
        assert {word for word in words if word.startswith("--")} <= set(known), verb


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake (demo|check|install|format|clean)\b", README))
    assert named >= {"demo", "check"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 150
