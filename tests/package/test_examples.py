"""The scripts in examples/ run as they stand, with fewer epochs, and leave a small network."""

import re
from pathlib import Path

import pytest
import torch
from warm_process import run_warm

import polarprune

EXAMPLES = Path(__file__).parents[2] / "examples"
EPOCHS = 3


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_trains_cuts_and_saves(script: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    arguments = ("--epochs", str(EPOCHS), "--out", str(small))
    said = run_warm(script.read_text("utf-8"), tmp_path, *arguments)
    macs = [int(text.replace(",", "")) for text in re.findall(r"([\d,]+) MACs", said)]
    assert len(macs) == EPOCHS
    assert macs[-1] <= 0.51 * macs[0]
    ratios = [float(text) for text in re.findall(r"at ([\d.]+) of the MACs", said)]
    assert ratios
    assert all(0.4 < ratio <= 0.5 for ratio in ratios)
    outputs = polarprune.load_network(small).eval()(torch.rand(4, 3, 32, 32))
    logits = outputs["digit"] if isinstance(outputs, dict) else outputs
    assert logits.shape == (4, 10)
    assert bool(logits.isfinite().all())
