"""`bench` on real files: the contract of its rows, and records that can be recomputed."""

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import polarprune
from polarprune.errors import BundleError, ConfigError
from polarprune.lowering import plain_network
from polarprune_deploy import Comparison, bench
from polarprune_deploy.bench_sides import options_as_trained

pytestmark = pytest.mark.usefixtures("brief_timing")

ROW = {
    "backend", "device", "precision", "batch", "against_ms", "ms", "speedup", "ci_low", "ci_high",
    "verdict", "control",
}  # fmt: skip
# What rows say beyond the contract.
MORE = {
    "against", "candidate", "quantity", "cache", "scenario", "images_per_second",
    "against_images_per_second", "reason",
}  # fmt: skip


def test_rows_have_exactly_the_stated_keys_in_the_order_asked_for(
    bundle: Path, convolutions: Callable[..., Path]
) -> None:
    seen: list[Comparison] = []
    got = bench(bundle, convolutions(6), batches=(1, 4), threads=1, on_row=seen.append)
    assert list(got) == ["rows"]
    assert [row["batch"] for row in got["rows"]] == [1, 4]
    assert [comparison.batch for comparison in seen] == [1, 4]
    for row in got["rows"]:
        assert set(row) == ROW | MORE
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["ms"])
        assert (row["quantity"], row["cache"]) == ("host latency", "warm")
        assert set(row["control"]) == {"speedup", "ci_low", "ci_high"}
        assert (row["backend"], row["device"], row["precision"]) == ("onnxruntime", "cpu", "fp32")
        assert row["ci_low"] <= row["speedup"] <= row["ci_high"]
        assert row["verdict"] in ("faster", "inconclusive")  # a control may fail, 1 time in 100
        assert row["speedup"] > 1.5
    json.dumps(got, allow_nan=False)
    for comparison in seen:
        assert "CPU, not a GPU claim" in comparison.label
        assert "\n" not in comparison.reason


def test_a_record_holds_all_raw_samples_and_gives_the_rows_again(
    bundle: Path, convolutions: Callable[..., Path], tmp_path: Path
) -> None:
    record = tmp_path / "new" / "record.jsonl"
    record.parent.mkdir()
    got = bench(bundle, convolutions(6), batches=(2, 1), threads=1, seed=5, record=record)
    head, *lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert head["kind"] == "environment"
    assert head["request"]["seed"] == 5
    assert head["usable_cpus"] >= 1
    assert head["packages"]["onnxruntime"]
    comparisons = [line for line in lines if line["kind"] == "comparison"]
    for number, (row, concluded) in enumerate(zip(got["rows"], comparisons, strict=True)):
        assert row.items() <= {k: v for k, v in concluded.items() if k in row}.items()
        assert concluded["settings"]["intra_op_threads"] == 1
        assert concluded["settings"]["spinning"]
        assert len(concluded["sha256"]["candidate"]) == 64
        assert concluded["label"] == "host latency, warm caches (CPU, not a GPU claim)"
        samples = [s for s in lines if s["kind"] == "sample" and s["comparison"] == number]
        assert len(samples) == 3 * concluded["rounds"] == 120
        ratios = []
        for round_number in range(40):
            times = {
                s["network"]: s["elapsed_ns"] / s["repetitions"]
                for s in samples
                if s["round"] == round_number
            }
            assert set(times) == {"against", "candidate", "control"}
            ratios.append(times["against"] / times["candidate"])
        ratios.sort()
        assert math.sqrt(ratios[19] * ratios[20]) == pytest.approx(row["speedup"])
        # At 97.5 % of 40 rounds the bounds lie between the 12th and 14th order statistics.
        assert ratios[11] <= row["ci_low"] <= ratios[13]
        assert ratios[26] <= row["ci_high"] <= ratios[28]
    assert list(record.parent.iterdir()) == [record]


def test_a_bundle_needs_something_to_compare_with(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="give --against"):
        bench(bundle)


@pytest.mark.parametrize("batches", [(), (0,), (1, -8)])
def test_batch_sizes_out_of_range_are_refused(bundle: Path, batches: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="--batch must be at least 1, got"):
        bench(bundle, bundle, batches=batches)


def test_other_backends_are_refused_before_anything_is_exported(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="tensorrt runs on GPUs alone; give --device cuda"):
        bench("resnet20", bundle, backend="tensorrt")
    with pytest.raises(ConfigError, match=r"holds ONNX, which torch does not run; use --backend"):
        bench("resnet20", bundle, backend="torch")


def test_a_folder_of_neither_kind_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    with pytest.raises(ConfigError, match="neither a run folder, a bundle, a saved network nor an"):
        bench(bundle, folder)


def test_a_saved_network_is_measured_as_a_model_is(tmp_path: Path) -> None:
    gated = polarprune.attach_gates(polarprune.build_network("resnet20"), torch.zeros(2, 3, 16, 16))
    polarprune.save_network(polarprune.collapse(gated), tmp_path / "small")
    got = bench(tmp_path / "small", "resnet20", batches=(1,), threads=1, image_size=16)
    [row] = got["rows"]
    assert (row["candidate"], row["against"]) == (str(tmp_path / "small"), "resnet20")


def test_options_of_a_model_are_refused_where_there_is_none(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="belong to a model"):
        bench(bundle, bundle, num_classes=100)


def test_an_edited_bundle_is_refused_and_leaves_no_record(bundle: Path, tmp_path: Path) -> None:
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    record = tmp_path / "record.jsonl"
    with pytest.raises(BundleError, match=r"bytes, the manifest says .* export again"):
        bench(bundle, bundle, record=record)
    assert not record.exists()


FACTORY = """
from torch import nn

def convolutions(layers, num_classes):
    body = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(layers - 1):
        body += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))

def eight(num_classes=10):
    return convolutions(8, num_classes)
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The user's own network, by name."""
    (tmp_path / "own_networks.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    return "own_networks:eight"


@pytest.fixture
def run(factory: str, tmp_path: Path) -> Path:
    """A finished run: of eight convolutions four are left."""
    folder = tmp_path / "run"
    folder.mkdir()
    small = importlib.import_module("own_networks").convolutions(4, num_classes=3)
    small = plain_network(small.eval(), torch.zeros(2, 3, 32, 32))
    polarprune.save_network(small, folder / "pruned")
    facts = {
        "schema": 1,
        "config": {"model": factory, "data": "digits", "target": 0.5},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "classes": ["a", "b", "c"],
        "input_shape": [3, 32, 32],
        "resize_side": 32,
    }
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def test_a_run_is_compared_with_its_own_base(run: Path) -> None:
    seen: list[Comparison] = []
    (row,) = bench(run, batches=(1,), threads=1, on_row=seen.append)["rows"]
    assert set(row) == ROW | MORE
    assert row["verdict"] in ("faster", "inconclusive")
    assert row["speedup"] > 1.4
    assert seen[0].against == "base"
    assert seen[0].candidate == f"{run} (pruned)"
    kept = [json.loads(line) for line in (run / "bench.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in kept].count("sample") == 120
    assert kept[1]["speedup"] == row["speedup"]
    assert kept[0]["request"]["x"] == str(run)


def test_a_model_is_exported_before_it_is_compared(bundle: Path, factory: str) -> None:
    seen: list[Comparison] = []
    options = {"num_classes": 4, "image_size": 32, "on_row": seen.append}
    (row,) = bench(bundle, factory, batches=(1,), threads=1, **options)["rows"]
    assert row["speedup"] > 1.5  # two convolutions against eight
    assert seen[0].against == factory
    assert seen[0].candidate == str(bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "mode must be one of eager, graph, compile"),
        ({"cache": "hot"}, "cache must be one of warm, cold, got 'hot'"),
        ({"scenario": "server"}, "scenario must be one of offline, single_stream, got 'server'"),
        (
            {"scenario": "single_stream", "batches": (8,)},
            "one image at a time, got --batch 8; give 1",
        ),
        ({"builds": 0}, "--builds must be at least 1, got 0"),
        ({"rounds": 39}, "--rounds must be at least 40, got 39"),
        ({"precision": "fp16"}, "--precision is for --backend torch"),
        ({"mode": "compile"}, "--mode compile is for --backend torch, got --backend onnxruntime"),
        ({"mode": "graph"}, "--mode graph records a CUDA graph"),
        ({"record": "nowhere/x.jsonl"}, "the folder nowhere does not exist; make it first"),
        ({"record": "."}, "--record takes a file, and . is a folder"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_anything_is_loaded(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    monkeypatch.setattr("polarprune_deploy.benching.SideOpener", None)
    with pytest.raises(ConfigError, match=message) as caught:
        bench(bundle, bundle, **options)
    assert "\n" not in str(caught.value)


def test_a_network_of_a_fixed_batch_is_timed_at_that_batch(
    convolutions: Callable[..., Path],
) -> None:
    fixed = convolutions(2, batch=3)
    (row,) = bench(fixed, convolutions(6), threads=1)["rows"]
    assert row["batch"] == 3
    assert row["speedup"] > 1.5


def test_both_sides_named_alike_are_told_apart(convolutions: Callable[..., Path]) -> None:
    path = convolutions(2)
    (row,) = bench(path, path, batches=(1,), threads=1)["rows"]
    assert (row["candidate"], row["against"]) == (str(path), f"{path} (again)")


def test_two_builds_make_one_row_of_which_both_are_told(
    bundle: Path, convolutions: Callable[..., Path]
) -> None:
    seen: list[Comparison] = []
    told: list[str] = []
    (row,) = bench(
        bundle, convolutions(6), batches=(1,), threads=1, builds=2, on_row=seen.append,
        progress=lambda text, step, steps: told.append(text),
    )["rows"]  # fmt: skip
    first, second = row["builds"]
    assert row["ci_low"] == min(first["ci_low"], second["ci_low"])
    assert row["ci_high"] == max(first["ci_high"], second["ci_high"])
    assert row["speedup"] == pytest.approx((first["speedup"] + second["speedup"]) / 2)
    assert {sample.build for sample in seen[0].samples} == {0, 1}
    assert seen[0].effect.confidence == pytest.approx(0.975)  # two verdicts are drawn
    assert told[0].startswith("loading")
    assert "build 2 of 2, timing, batch 1, rounds" in told


def test_what_is_too_slow_at_the_largest_batch_is_said_before_anything_is_timed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polarprune.errors import Refused
    from polarprune_deploy import latency

    monkeypatch.setattr(latency, "MAX_SECONDS", 1e-3)
    monkeypatch.setattr("polarprune_deploy.benching.compare_latency", None)
    with pytest.raises(Refused, match=r"40 rounds would take .* use a smaller --batch"):
        bench(bundle, bundle, batches=(1, 4), threads=1)


def test_a_run_and_a_model_are_timed_in_torch_as_they_are(
    run: Path, factory: str, bundle: Path
) -> None:
    seen: list[Comparison] = []
    (row,) = bench(run, batches=(2,), threads=1, backend="torch", on_row=seen.append)["rows"]
    assert (row["backend"], row["mode"], row["precision"]) == ("torch", "eager", "fp32")
    assert row["speedup"] > 1.3
    assert row["verdict"] in ("faster", "inconclusive")
    assert "device_time" not in row  # a CPU has no clock of its own
    (row,) = bench(
        run, factory, batches=(1,), threads=1, backend="torch", precision="bf16",
        on_row=seen.append,
    )["rows"]  # fmt: skip
    assert row["precision"] == "bf16"
    assert 0 < seen[1].reference_errors["candidate"] < 0.1
    with pytest.raises(ConfigError, match=r"of 3 x 16 x 16, .* of 3 x 32 x 32; .* --image-size"):
        bench(run, factory, image_size=16)
    with pytest.raises(ConfigError, match=r"of 3 x 16 x 16, .* of 3 x 32 x 32; .* --image-size"):
        bench(bundle, factory, image_size=16)


def test_a_model_is_built_as_the_run_beside_it_was_where_nothing_else_is_asked_for(
    run: Path, factory: str
) -> None:
    sources = (Path(factory), run)
    asked: dict[str, int | None] = {"num_classes": None, "image_size": 16}
    assert options_as_trained(sources, asked) == {"num_classes": 3, "image_size": 16}
    assert options_as_trained(sources[:1], asked) == asked


def test_builds_of_an_engine_are_built_again_from_the_verified_onnx(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polarprune_deploy import bench_sides
    from polarprune_deploy.backends.loading import How
    from polarprune_deploy.bench_sides import Side, SideOpener

    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(bench_sides, "engine_runner", lambda engine, how: engine)
    opener = SideOpener(tmp_path, How("tensorrt_rtx", "cuda"), {}, lambda *words: None)
    engine = opener.load(Side("mine", bundle), (1, 8), rebuild=True)
    assert (engine.name, engine.runtime, engine.precision) == ("mine", "tensorrt_rtx", "fp32")
    assert [(p.min, p.max) for p in engine.profiles] == [(1, 1), (1, 64)]  # the manifest's
    assert len(engine.data) > 1000
    assert engine.onnx.data == (bundle / "model.onnx").read_bytes()
