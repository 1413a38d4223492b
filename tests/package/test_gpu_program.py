"""The GPU benchmark's rehearsal: its rows, its fields, and where it writes."""

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
# A machine with a GPU has torch and little else.
ABSENT_THERE = {"onnx", "onnxruntime", "onnxscript", "onnxsim", "matplotlib", "starlette", "timm"}

# Shorter warm-ups and blocks: a rehearsal tests the program and not the machine.
PROGRAM = """
import json, sys
from polarprune_deploy import timing
timing.WARM_UP_LIMIT_NS, timing.WARM_UP_WINDOW_NS, timing.BLOCK_MS = 1, 10_000_000, 2.0
from benchmarks.gpu import main
from polarprune.errors import BackendUnavailable
try:
    main(networks="resnet18")
except BackendUnavailable as error:
    print(error)
main(networks="resnet18", batches="1", image_size=32, rounds=40, seed=3, dry_run=True)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def run_program(out: Path) -> list[str]:
    """What the program prints in a fresh interpreter that sees no GPU."""
    paths = os.pathsep.join(str(ROOT / source) for source in (".", "export", "deploy"))
    here = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, **here, "OUT": str(out)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


@pytest.fixture(scope="module")
def results_before() -> set[Path]:
    return set(RESULTS.rglob("*"))


@pytest.fixture(scope="module")
def rehearsal(
    results_before: set[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[str], set[str]]:
    """The record, the printed lines, and the packages that were imported."""
    out = tmp_path_factory.mktemp("out")
    *printed, modules = run_program(out)
    assert [file.name for file in out.iterdir()] == ["gpu.json"]
    return json.loads((out / "gpu.json").read_text()), printed, set(json.loads(modules))


def test_a_rehearsal_says_that_it_is_one(rehearsal: Any) -> None:
    record, printed, _ = rehearsal
    assert record["dry_run"] is True
    assert "CPU REHEARSAL" in record["what"]
    assert "CPU REHEARSAL" in "\n".join(printed)
    assert {row["device"] for row in record["rows"]} == {"cpu"}
    assert {row["settings"]["mode"] for row in record["rows"]} == {"eager"}


def test_each_cut_has_a_row_with_its_control_and_every_round(rehearsal: Any) -> None:
    record, _, _ = rehearsal
    assert [row["cut"] for row in record["rows"]] == ["blocks", "channels", "aligned channels"]
    for row in record["rows"]:
        assert row["ci_low"] <= row["speedup"] <= row["ci_high"]
        assert {"speedup", "ci_low", "ci_high"} <= set(row["control"])
        assert row["confidence"] == pytest.approx(1 - 0.05 / 3)  # three verdicts drawn together
        samples = [dict(zip(row["sample_fields"], s, strict=True)) for s in row["samples"]]
        assert {sample["round"] for sample in samples} == set(range(40))
        assert len(samples) == 3 * 40
        assert row["precision_error"] < 1e-3
    assert record["n"] == 40
    assert record["seed"] == 3
    assert {"cpu", "gpu", "torch", "cuda", "git"} <= set(record["machine"])


def test_the_aligned_cut_opens_only_what_rounding_asks_for(rehearsal: Any) -> None:
    facts = rehearsal[0]["networks"]["resnet18"]
    plain, aligned = facts["channels"]["open"], facts["aligned channels"]["open"]
    assert aligned == {site: -(-count // 8) * 8 for site, count in plain.items()}
    assert any(count % 8 for count in plain.values())
    assert facts["channels"]["macs"] < facts["aligned channels"]["macs"] < facts["dense"]["macs"]
    assert list(facts["blocks"]["open"].values()).count(0) == 4  # of ResNet-18's eight
    assert all(cut["certificate"]["passed"] for cut in facts.values())


def test_nothing_is_written_where_results_lie(rehearsal: Any, results_before: set[Path]) -> None:
    assert set(RESULTS.rglob("*")) == results_before


def test_without_out_only_a_measurement_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import gpu

    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "gpu" / "latency.json")
    gpu.write({"n": 40, "rows": [{"cut": "blocks"}]}, dry_run=True)
    assert list(tmp_path.iterdir()) == []
    gpu.write({"n": 40, "rows": [{"cut": "blocks"}]}, dry_run=False)
    assert json.loads(gpu.RESULTS.read_text()) == {"n": 40, "rows": [{"cut": "blocks"}]}


def test_it_needs_no_package_that_such_a_machine_lacks(rehearsal: Any) -> None:
    assert rehearsal[2] & ABSENT_THERE == set()
    assert "torch" in rehearsal[2]


def test_without_a_gpu_it_declines_to_measure(rehearsal: Any) -> None:
    assert rehearsal[1][0] == "no CUDA device is here; rehearse with --dry-run"
