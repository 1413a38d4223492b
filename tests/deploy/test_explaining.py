"""`bench --explain` on real networks. What is asserted of times is only that they add up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import polarprune
from polarprune.cli import app
from polarprune.errors import ConfigError
from polarprune_deploy import bench, benching, load_runner
from polarprune_deploy.latency_record_reading import read_latency
from polarprune_deploy.layers import explaining, explaining_torch, roofline
from polarprune_deploy.layers.explaining import Explainer
from polarprune_deploy.layers.explaining_torch import explain_torch
from polarprune_export import write_onnx


@pytest.fixture(autouse=True)
def _in_a_hurry(brief_timing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is asserted of how well the times are known."""
    monkeypatch.setattr(explaining, "SECONDS", 0.5)
    monkeypatch.setattr(explaining_torch, "RUNS", 21)
    monkeypatch.setattr(explaining_torch, "SECONDS", 0.5)
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


def check_document(document: dict[str, Any], layers: int) -> None:
    total = document["by_macs_ms"] + sum(item["ms"] for item in document["budget"])
    assert total == pytest.approx(document["pruned_ms"])
    assert document["aligned_by"] == "name"
    assert len(document["layers"]) == layers
    # The profile counts whole microseconds, and the last layer takes about one.
    assert all(each["pruned_ms"] > 0 for each in document["layers"][:-1])
    assert document["layers"][-1]["pruned_ms"] >= 0
    assert len(document["changes"]) <= 3


@pytest.mark.slow
def test_bench_explains_each_row(sides: tuple[Path, Path], tmp_path: Path) -> None:
    dense, pruned = (str(side) for side in sides)
    record = tmp_path / "record.jsonl"
    outcome = CliRunner().invoke(
        app,
        ["bench", pruned, "--against", dense, "--batch", "1,2", "--threads", "1", "--explain",
         "--json", "--record", str(record)],
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads(outcome.stdout.splitlines()[-1])["rows"]
    for row in rows:
        check_document(row["explanation"], 20)
        # 11 of 16 is no multiple of 4: all but image, and outputs of the last layer, can be padded.
        assert [each["multiple"] for each in row["explanation"]["padded"]][:2] == [4, 8]
    shown = outcome.stderr
    for words in ("Where the time goes", "Layer by layer", "layer3.2.conv2", "the pruned network"):
        assert shown.count(words) >= 2
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    kept = [line for line in lines if line["kind"] == "explanation"]
    assert kept == [
        {"kind": "explanation", "comparison": number, **row["explanation"]}
        for number, row in enumerate(rows)
    ]
    latency = read_latency(record)  # what shows comparisons reads them as ever
    assert latency is not None
    assert len(latency.rows) == 2


def two_convolutions(inner: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, inner, 3), nn.ReLU(), nn.Conv2d(inner, 16, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def wide() -> nn.Module:
    return two_convolutions(16)


def thin() -> nn.Module:
    return two_convolutions(11)


def activation() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Flatten())


HERE = "tests.deploy.test_explaining"


def test_torch_is_explained_once_after_all_builds_are_timed() -> None:
    happened: list[str] = []

    def progress(text: str, step: int, steps: int) -> None:
        if "layers" in text:
            happened.append("layers")

    rows = bench(
        f"{HERE}:thin", f"{HERE}:wide", batches=(2,), backend="torch", threads=1, image_size=16,
        num_classes=4, explain=True, builds=2, progress=progress,
        on_row=lambda row: happened.append(f"row {row.batch}"),
        on_explanation=lambda found: happened.append(f"explained {found.measured.batch}"),
    )["rows"]  # fmt: skip
    assert happened == ["row 2", "layers", "explained 2"]
    for row in rows:
        document: Any = row["explanation"]
        check_document(document, 3)
        # Of the multiples of 8, 16 and 32, each layer timed alone.
        assert [each["multiple"] for each in document["padded"]] == [8, 16, 32]


def test_without_explain_rows_have_none(bundle: Path) -> None:
    (row,) = bench(bundle, bundle, batches=(1,), threads=1)["rows"]
    assert "explanation" not in row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt", "device": "cuda"}, "tensorrt engines are not timed"),
        ({"backend": "tensorrt_rtx"}, "tensorrt_rtx engines are not timed"),
        ({"device": "cuda"}, "on a GPU onnxruntime's profile"),
        ({"backend": "torch", "mode": "compile"}, "--mode compile leaves no layers"),
        ({"cache": "cold"}, "--explain times warm runs, got --cache cold"),
        ({"across_precisions": True}, "MACs of one precision"),
        ({"backend": "tflite"}, "backend must be one of"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_anything_is_opened(
    options: dict[str, Any], message: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benching, "SideOpener", None)
    with pytest.raises(ConfigError, match=message):
        bench(bundle, bundle, explain=True, **options)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_networks_without_macs_are_refused_before_anything_is_timed(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benching, "compare_latency", None)
    with pytest.raises(
        ConfigError, match=r"activation \(again\) has no convolution or linear layer"
    ):
        bench(
            f"{HERE}:activation", f"{HERE}:activation", batches=(1,), backend=backend,
            image_size=8, num_classes=192, explain=True,
        )  # fmt: skip


def test_another_batch_size_is_refused(convolutions: Callable[..., Path]) -> None:
    sides = [load_runner(convolutions(layers, batch=2), threads=1) for layers in (2, 1)]
    with pytest.raises(ConfigError, match="exported for batches of 2"):
        Explainer().explain(sides[0], sides[1], batch=3)


def test_networks_in_memory_are_explained_the_same_way() -> None:
    explanation = explain_torch(wide(), thin(), torch.randn(2, 3, 16, 16))
    budget = explanation.budget
    total = budget.expected_ms + sum(item.ms for item in budget.items)
    assert total == pytest.approx(budget.measured_ms)
    assert [each.multiple for each in explanation.measured.padded] == [8, 16, 32]
    first = explanation.measured.padded[0]
    assert first.widths["0"] == (3, 16)
    assert first.widths["2"] == (16, 16)
    assert first.macs["2"] == round(11 * 16 * 9 * 12 * 12 * 2 * 16 / 11)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_torch_is_explained_by_its_kernels() -> None:
    (row,) = bench(
        f"{HERE}:thin", f"{HERE}:wide", batches=(8,), backend="torch", device="cuda",
        precision="fp16", image_size=64, num_classes=4, explain=True,
    )["rows"]  # fmt: skip
    document: Any = row["explanation"]
    check_document(document, 3)
    assert document["launch_ms"] > 0
    # Kernels this small do not fill a run: the host's launches do.
    assert document["between_ms"]["pruned"] > 0
