"""The study's report: intervals, differences and the words of its table, from records alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pareto.report import difference, dynamic_table, read_records, table_of
from benchmarks.pareto.settings import SETTINGS


def _write(folder: Path, name: str, seed: int, top1: float, macs: int = 50, **more: float) -> None:
    result = {
        "top1": top1, "dense_macs": 100, "macs": macs, "params": 5, "dense_params": 10,
        "train_macs_ratio": 0.7, "seconds": 10.0, "macs_ratio": macs / 100, **more,
    }  # fmt: skip
    record = {
        "setting": name, "what": "w", "group": "ours", "seed": seed, "result": result,
        "config": {"epochs": 12},
    }  # fmt: skip
    (folder / f"{name}-{seed}.json").write_text(json.dumps(record))


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        ours, theirs = rng.normal(1.0, 0.2, 5), rng.normal(0.5, 0.4, 5)
        _, low, high = difference(ours.tolist(), theirs.tolist())
        held += low <= 0.5 <= high
    assert 0.92 <= held / 400 <= 0.985


def test_one_run_has_no_interval() -> None:
    assert difference([1.0], [1.0, 2.0]) is None


def test_rows_stand_with_their_runs_and_differences(tmp_path: Path) -> None:
    for seed, (dense, ours) in enumerate([(0.90, 0.89), (0.91, 0.90)]):
        _write(tmp_path, "dense", seed, dense, macs=100)
        _write(tmp_path, "ours", seed, ours)
    table = table_of(read_records(tmp_path))
    [line] = [line for line in table.splitlines() if line.startswith("| ours")]
    assert "89.50 (89.00, 90.00)" in line
    assert "| 0.500 | 0.500 | 0.70 | 10 (1.00 x dense) |" in line
    assert "-1.00 [" in line


def test_what_gates_decide_stands_beside_what_of_it_is_static(tmp_path: Path) -> None:
    _write(tmp_path, "ours", 0, 0.9)
    assert dynamic_table(read_records(tmp_path)) == ""
    for seed, (dynamic, static) in enumerate([(0.80, 0.70), (0.82, 0.74)]):
        _write(
            tmp_path, "mask-predictor", seed, static, macs=98, dynamic_top1=dynamic,
            dynamic_macs_ratio=0.5 + 0.1 * seed, forecast_macs_ratio=0.4,
        )  # fmt: skip
    [line] = dynamic_table(read_records(tmp_path)).splitlines()[4:]
    assert "| 2 | 81.00 (80.00, 82.00) | 0.550 | 0.400 | 72.00 (70.00, 74.00) | 0.980 |" in line


def test_rows_have_names_of_their_own() -> None:
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_every_row_is_the_same_recipe_but_for_what_it_says(setting) -> None:
    assert set(setting.options) <= {
        "target",
        "target_params",
        "model",
        "epochs",
        "granularity",
        "method",
        "mass",
    }
