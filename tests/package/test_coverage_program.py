"""The coverage program tells an exact network, a wrong one and a refused one apart."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import polarprune
from polarprune.errors import Refused

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a module of the benchmarks, which are not packaged."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def row_of(program: Callable[[str], ModuleType], name: str = "resnet20") -> dict[str, Any]:
    checks = program("coverage.checks")
    row: dict[str, Any] = checks.check_network(
        name, checks.Settings(image_size=16, batch=2, repeats=1, onnx=False)
    )
    return row


def test_an_exact_network(program: Callable[[str], ModuleType]) -> None:
    saved: list[str] = []
    checks = program("coverage.checks")
    settings = checks.Settings(image_size=16, batch=2, repeats=1, onnx=False)
    row = checks.check_network("resnet20", settings, lambda row: saved.append(row["stage"]))
    assert row["problems"] == []
    assert row["verdict"] == "exact"
    assert saved[0] == "build"
    assert saved[-1] == "blocks"
    assert 0.2 < row["kept"] < 0.3
    assert row["blocks"]["kept"] < row["kept"]
    assert row["blocks"]["closed"] == 4
    assert row["reference"]["layers"] == 19  # all but the stem
    assert row["reference"]["skipped"] == {}
    assert row["exact"]["evaluation_variation"] > 1e-3
    assert 0 < row["one_sided"] < 0.05  # the stem and the classifier
    tables = program("coverage.tables")
    summary = tables.summarise([row])
    assert (summary["exact"], summary["WRONG"]) == (1, 0)
    record = {"settings": row["settings"], "summary": summary, "left_out": {}, "rows": [row]}
    assert json.loads(tables.dump(record)) == json.loads(json.dumps(record))
    assert "| resnet20 | exact | 16 | 9 | 12 (400) |" in tables.table(record)


def test_a_broken_collapse_is_wrong(
    program: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(net: nn.Module) -> nn.Module:
        dense = polarprune.collapse(net)
        with torch.no_grad():
            next(dense.parameters()).mul_(1 + 1e-6)
        return dense

    monkeypatch.setattr(program("coverage.checks"), "collapse", broken)
    row = row_of(program)
    assert row["verdict"] == "WRONG"
    assert {p["stage"] for p in row["problems"]} >= {"exact", "reference", "blocks"}


def test_a_wrong_analysis_is_seen_by_the_eager_reference_alone(
    program: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gates and collapse share the analysis: both follow a unit that sits in the wrong place."""
    from polarprune.graph.sites import Analysis

    right = Analysis.units_at
    reference = program("coverage.reference")
    find = reference.find_readers

    def find_wrongly(*arguments: Any) -> Any:
        monkeypatch.setattr(Analysis, "units_at", lambda self, at: right(self, at)[::-1])
        found = find(*arguments)
        monkeypatch.setattr(Analysis, "units_at", right)
        return found

    monkeypatch.setattr(program("coverage.checks"), "find_readers", find_wrongly)
    row = row_of(program)
    assert row["verdict"] == "WRONG"
    assert {p["stage"] for p in row["problems"]} == {"reference"}


@pytest.mark.parametrize(
    ("error", "expected"), [(Refused("no, thank you"), "refused"), (KeyError("x"), "crash")]
)
def test_refusals_and_crashes_keep_their_line(
    program: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    expected: str,
) -> None:
    def failing(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(program("coverage.checks"), "attach_gates", failing)
    row = row_of(program)
    assert row["verdict"] == expected
    [problem] = row["problems"]
    assert problem["stage"] == "attach"
    assert str(error.args[0]) in problem["line"]


def test_a_closed_last_norm_or_tiny_scale_does_not_stay(
    program: Callable[[str], ModuleType],
) -> None:
    signal = program("coverage.signal")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    nn.init.zeros_(net[1].weight)
    images = torch.randn(2, 3, 8, 8)
    assert signal.variation(signal.outputs(net, images, training=False)) < 1e-6
    signal.prepare(net, images, seed=0)
    assert signal.variation(signal.outputs(net, images, training=False)) > 1e-3
    assert net[1].momentum == 0.1


def test_the_list_is_wide_enough(program: Callable[[str], ModuleType]) -> None:
    models = program("coverage.models")
    timm = pytest.importorskip("timm")
    known = set(timm.list_models())
    names = [name for members in models.timm_families().values() for name in members]
    assert set(names) <= known
    assert len(set(names)) == len(names) >= 65
    assert len(models.timm_families()) >= 28
