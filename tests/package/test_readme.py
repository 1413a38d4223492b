"""The README's blocks run as they stand; what takes minutes runs with fewer epochs."""

import re
from pathlib import Path

import pytest
from documented_commands import RUN_ALL, blocks, check_command, commands, run_program, shorten

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# One epoch in place of the README's, fewer rows of latency, and an engine for one batch size.
SHORTER = {
    "--epochs 12": "--epochs 1",
    "epochs, batch_size = 12, 32": "epochs, batch_size = 1, 32",
    "--batch 1,8,64": "--batch 1",
    "--format trt": "--format trt --batch 1:1:1",
}


def test_every_shortening_is_of_something_that_the_readme_says() -> None:
    assert [long for long in SHORTER if long not in README] == []


@pytest.mark.slow
def test_the_pipeline_block_runs(tmp_path: Path) -> None:
    found = blocks(shorten(README, SHORTER), "sh")
    (pipeline,) = (block for block in found if "polarprune verify" in block.text)
    words = commands([pipeline])
    assert len(words) == len(pipeline.lines)
    output = run_program(RUN_ALL, tmp_path, words)
    assert [line for line in output.splitlines() if line.startswith("$ bench")]
    assert (tmp_path / "run" / "pruned" / "network.json").is_file()
    assert (tmp_path / "bundle" / "model.onnx").is_file()
    assert (tmp_path / "bundle" / "model.tensorrt_rtx.engine").is_file()


@pytest.mark.slow
def test_the_python_block_runs(tmp_path: Path) -> None:
    (block,) = blocks(shorten(README, SHORTER), "python")
    output = run_program(block.text, tmp_path)
    figures = re.fullmatch(r"(\d+) of (\d+) MACs", output.strip())
    assert figures is not None, output
    assert int(figures[1]) <= 0.5 * int(figures[2])
    assert (tmp_path / "small.onnx").is_file()


def test_every_command_is_one_that_the_program_takes() -> None:
    found = commands(blocks(README, "sh"))
    assert len(found) > 5
    for words in found:
        check_command(words)


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake (demo|check|study|install|format|clean)\b", README))
    assert named >= {"demo", "check", "study"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 150
