"""The long runs of ResNet-56 stop when their time is up, and go on when they are called again."""

import json
from pathlib import Path

import pytest
from warm_process import run_warm

ROOT = Path(__file__).parents[2]


def _part(work: Path, minutes: float) -> str:
    return run_warm(
        "from benchmarks.resnet56_cifar10 import app; app()", ROOT,
        "part", "--data", "digits", "--work", str(work), "--minutes", str(minutes), "--epochs", "1",
        "--model", "digit_runs:resnet8",
    )  # fmt: skip


@pytest.mark.slow
def test_parts_add_up(tmp_path: Path) -> None:
    said = _part(tmp_path, 0)
    assert said.startswith("time is up; ours-0.5: epoch 1/1, step 1 of 11")
    assert not (tmp_path / "records").exists()
    said = _part(tmp_path, 10)
    assert "all is recorded" in said
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "records").iterdir()}
    assert set(records) == {"ours-0.5", "dense", "ours-0.35"}
    assert records["dense"]["result"]["macs_ratio"] == 1
    assert 0.3 < records["ours-0.35"]["result"]["macs_ratio"] <= 0.35
    assert 0.45 < records["ours-0.5"]["result"]["macs_ratio"] <= 0.5
    assert _part(tmp_path, 10) == said, "what is recorded is not repeated"
