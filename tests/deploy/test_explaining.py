"""`bench --explain` on real networks. What is asserted of times is only that they add up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import polarprune
from polarprune.cli import app
from polarprune.errors import BackendUnavailable, ConfigError
from polarprune_deploy import bench, explaining, load_runner, roofline
from polarprune_deploy.explaining import Explainer, make_explainer
from polarprune_deploy.explaining_torch import explain_torch
from polarprune_export import write_onnx


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is asserted of how well the times are known."""
    monkeypatch.setattr(explaining, "SECONDS", 0.5)
    monkeypatch.setattr(roofline, "PEAK_NS", 10_000_000)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """ResNet-20, and one with 11 of 16 channels inside of every block, and so on."""
    folder = tmp_path_factory.mktemp("sides")
    net = polarprune.build_network("resnet20", num_classes=10).eval()
    example = torch.zeros(2, 3, 16, 16)
    write_onnx(net, folder / "dense.onnx", example)
    gated = polarprune.attach_gates(net, example)
    decisions = {}
    for site in gated.sites:
        if site.kind == "channel":
            decisions[site.name] = torch.arange(site.units) < site.units * 11 // 16
    gated.set_decisions(decisions)
    write_onnx(polarprune.collapse(gated), folder / "pruned.onnx", example)
    return folder / "dense.onnx", folder / "pruned.onnx"


def test_bench_explains_each_row(sides: tuple[Path, Path]) -> None:
    dense, pruned = (str(side) for side in sides)
    outcome = CliRunner().invoke(
        app,
        ["bench", pruned, "--against", dense, "--batch", "1,2", "--threads", "1", "--explain",
         "--json"],
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads(outcome.stdout.splitlines()[-1])["rows"]
    for row in rows:
        document = row["explanation"]
        total = document["by_macs_ms"] + sum(item["ms"] for item in document["budget"])
        assert total == pytest.approx(document["pruned_ms"])
        assert document["aligned_by"] == "name"
        assert len(document["layers"]) == 20
        assert all(each["pruned_ms"] > 0 for each in document["layers"])
        # 11 of 16 is no multiple of 4: all but image, and outputs of the last layer, can be padded.
        assert [each["multiple"] for each in document["padded"]][:2] == [4, 8]
        assert len(document["changes"]) <= 3
    shown = outcome.stderr
    for words in ("Where the time goes", "Layer by layer", "layer3.2.conv2", "the pruned network"):
        assert shown.count(words) >= 2


def test_without_explain_rows_have_none(bundle: Path) -> None:
    (row,) = bench(bundle, bundle, batches=(1,), threads=1)["rows"]
    assert "explanation" not in row


@pytest.mark.parametrize(("backend", "device"), [("tensorrt", "cpu"), ("onnxruntime", "cuda")])
def test_what_cannot_be_explained_is_refused_in_one_line(backend: str, device: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"--explain reads layer times"):
        make_explainer(backend, device)


def test_another_batch_size_is_refused(convolutions: Callable[..., Path]) -> None:
    sides = [load_runner(convolutions(layers, batch=2), threads=1) for layers in (2, 1)]
    with pytest.raises(ConfigError, match="exported for batches of 2"):
        Explainer().explain(sides[0], sides[1], batch=3)


def test_networks_in_memory_are_explained_the_same_way() -> None:
    def convolutions(inner: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, inner, 3), nn.ReLU(), nn.Conv2d(inner, 16, 3), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip

    explanation = explain_torch(convolutions(16), convolutions(11), torch.randn(2, 3, 16, 16))
    budget = explanation.budget
    total = budget.expected_ms + sum(item.ms for item in budget.items)
    assert total == pytest.approx(budget.measured_ms)
    assert [each.multiple for each in explanation.measured.padded] == [8, 16, 32]
    first = explanation.measured.padded[0]
    assert first.widths["0"] == (3, 16)
    assert first.widths["2"] == (16, 16)
    assert first.macs["2"] == round(11 * 16 * 9 * 12 * 12 * 2 * 16 / 11)
