"""The GPU benchmark's rehearsal: its rows, its record, and how a part stops and goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# A machine with a GPU has not all that is here.
ABSENT_THERE = {"onnxsim", "starlette", "torch_pruning"}

# Shorter warm-ups and blocks: a rehearsal tests the program and not the machine.
PROGRAM = """
import json, sys
from polarprune_deploy import timing
from polarprune_deploy.layers import channel_counts
from polarprune_deploy.layers import layer_replay
timing.WARM_UP_LIMIT_NS, timing.WARM_UP_WINDOW_NS, timing.BLOCK_MS = 1, 10_000_000, 2.0
channel_counts.WINDOW = 8
layer_replay._POINT_MS, layer_replay._CYCLE_MS, layer_replay._WARM_UP_S = 0.1, 0.1, 0.0
from benchmarks.gpu import __main__ as program
from polarprune.errors import PolarpruneError
for words in json.load(sys.stdin):
    print("$", *words)
    try:
        program.app(words, standalone_mode=False)
    except PolarpruneError as error:
        print(f"error: {error}")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
ONE = ["latency", "--dry-run", "--networks", "resnet18", "--kept", "0.5", "--batches", "1",
       "--image-size", "32", "--seed", "3"]  # fmt: skip


def run_program(calls: list[list[str]], out: Path) -> list[str]:
    """What the calls print in a fresh interpreter that sees no GPU, each after its own words."""
    paths = os.pathsep.join(str(ROOT / source) for source in (".", "export", "deploy"))
    here = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, **here, "OUT": str(out)},
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=400,  # 20 s where nobody else computes
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


def lines_of(record: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def results_before() -> set[Path]:
    return set(RESULTS.rglob("*"))


@pytest.fixture(scope="module")
def rehearsal(
    results_before: set[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[str]], set[str]]:
    """The folder of records, what each call printed, and the packages that were imported."""
    out = tmp_path_factory.mktemp("out")
    calls = [
        ["latency"],
        ONE,
        ONE,
        [*ONE[:-1], "4"],
        [*ONE, "--modes", "eager,onnxruntime", "--seconds", "1"],
        ["staircase", "--dry-run", "--batches", "2", "--image-size", "8"],
    ]
    *printed, modules = run_program(calls, out)
    starts = [place for place, line in enumerate(printed) if line.startswith("$ ")]
    parts = [
        printed[start + 1 : stop]
        for start, stop in zip(starts, [*starts[1:], len(printed)], strict=True)
    ]
    return out, parts, set(json.loads(modules))


def test_without_a_gpu_it_declines_to_measure(rehearsal: Any) -> None:
    assert rehearsal[1][0] == ["error: no CUDA device is here; rehearse with --dry-run"]


def test_a_rehearsal_says_that_it_is_one(rehearsal: Any) -> None:
    out, printed, _ = rehearsal
    for name, part in (("uniform_cuts", 1), ("staircases", 5)):
        (head,) = lines_of(out / f"{name}.jsonl", "head")
        assert head["dry_run"] is True
        assert "CPU REHEARSAL" in head["what"]
        assert "CPU REHEARSAL" in " ".join(printed[part])
    (cell,) = lines_of(out / "uniform_cuts.jsonl", "cell")
    assert cell["device"].startswith("CPU REHEARSAL")


def test_each_cut_has_a_row_with_its_control_and_every_round(rehearsal: Any) -> None:
    (cell,) = lines_of(rehearsal[0] / "uniform_cuts.jsonl", "cell")
    cuts = ["channels", *(f"channels aligned to {m}" for m in (8, 16, 32)), "blocks"]
    assert [row["cut"] for row in cell["rows"]] == cuts
    for row in cell["rows"]:
        assert row["ci_low"] <= row["speedup"] <= row["ci_high"]
        assert {"speedup", "ci_low", "ci_high"} <= set(row["control"])
        assert row["confidence"] == pytest.approx(1 - 0.05 / 5)  # five verdicts drawn together
        assert row["device_name"] == cell["device"]
        assert row["settings"]["mode"] == "eager"
    samples = [dict(zip(cell["sample_fields"], s, strict=True)) for s in cell["samples"]]
    assert {sample["round"] for sample in samples} == set(range(40))
    # Dense, five cuts and their controls, each once a round.
    assert len(samples) == 40 * 11
    assert len({(s["round"], s["network"]) for s in samples}) == 40 * 11


def test_a_cut_keeps_no_more_than_its_bound_at_counts_as_asked(rehearsal: Any) -> None:
    (networks,) = lines_of(rehearsal[0] / "uniform_cuts.jsonl", "networks")
    assert networks["weights"] == "random: latency only"
    for cut, facts in networks["cuts"].items():
        assert facts["macs"] <= 0.5 * networks["dense"]["macs"]
        assert facts["certificate"]["passed"]
        assert facts["certificate"]["max_rel_error"] < 1e-9
        assert facts["folding_error"] < 1e-4
        if "aligned" in cut:
            multiple = int(cut.rpartition(" ")[2])
            assert all(count % multiple == 0 for count in facts["open"].values())
    assert any(count % 8 for count in networks["cuts"]["channels"]["open"].values())
    assert set(networks["cuts"]["blocks"]["open"].values()) == {0}


def test_what_is_recorded_is_not_done_again(rehearsal: Any) -> None:
    out, printed, _ = rehearsal
    assert any("s left" in line for line in printed[1])
    assert not any("s left" in line for line in printed[2])
    assert "resnet18" in "\n".join(printed[2])  # the table is shown all the same
    assert len(lines_of(out / "uniform_cuts.jsonl", "call")) == 3


def test_a_record_of_other_options_is_refused(rehearsal: Any) -> None:
    (line,) = rehearsal[1][3]
    assert "its seed is 3, and this call's is 4" in line


def test_what_would_not_end_in_time_is_not_begun(rehearsal: Any) -> None:
    printed = rehearsal[1][4]
    assert "no time for 1 of 2" in printed[-1]
    assert "onnxruntime" in printed[-1]
    assert not any("s left" in line for line in printed)


def test_staircases_of_every_convolution_are_recorded(rehearsal: Any) -> None:
    found = lines_of(rehearsal[0] / "staircases.jsonl", "staircase")
    assert len(found) == 5  # ResNet-20 at three sizes, two of them with a strided way down
    for line in found:
        assert line["batch"] == 2
        for side in line["sides"]:
            assert len(side["counts"]) == len(side["ms"])
            assert min(side["ms"]) > 0
    assert "multiple" in "\n".join(rehearsal[1][5])


def test_nothing_is_written_where_results_lie(rehearsal: Any, results_before: set[Path]) -> None:
    assert set(RESULTS.rglob("*")) == results_before


def test_it_needs_no_package_that_such_a_machine_lacks(rehearsal: Any) -> None:
    assert rehearsal[2] & ABSENT_THERE == set()
    assert "torch" in rehearsal[2]
