"""`bench` on real files: the contract of its rows, and records that can be recomputed."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from polarprune.errors import BackendUnavailable, BundleError, ConfigError
from polarprune_deploy import Comparison, bench

ROW = {
    "backend", "device", "precision", "batch", "against_ms", "ms", "speedup", "ci_low", "ci_high",
    "verdict", "control",
}  # fmt: skip


def test_rows_have_exactly_the_stated_keys_in_the_order_asked_for(
    bundle: Path, convolutions: Callable[..., Path]
) -> None:
    seen: list[Comparison] = []
    got = bench(bundle, convolutions(6), batches=(1, 4), threads=1, on_row=seen.append)
    assert list(got) == ["rows"]
    assert [row["batch"] for row in got["rows"]] == [1, 4]
    assert [comparison.batch for comparison in seen] == [4, 1]
    for row in got["rows"]:
        assert set(row) == ROW
        assert set(row["control"]) == {"speedup", "ci_low", "ci_high"}
        assert (row["backend"], row["device"], row["precision"]) == ("onnxruntime", "cpu", "fp32")
        assert row["ci_low"] <= row["speedup"] <= row["ci_high"]
        assert row["verdict"] in ("faster", "inconclusive")  # a control may fail, 1 time in 100
        assert row["speedup"] > 1.5
    json.dumps(got, allow_nan=False)
    for comparison in seen:
        assert "CPU, not a GPU claim" in comparison.sentence()
        assert "\n" not in comparison.sentence()


def test_a_record_holds_all_raw_samples_and_gives_the_rows_again(
    bundle: Path, convolutions: Callable[..., Path], tmp_path: Path
) -> None:
    record = tmp_path / "new" / "record.jsonl"
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
    with pytest.raises(ConfigError, match="batch sizes must be at least 1"):
        bench(bundle, bundle, batches=batches)


def test_other_backends_are_refused_before_anything_is_exported(bundle: Path) -> None:
    with pytest.raises(BackendUnavailable, match="onnxruntime only"):
        bench("resnet20", bundle, backend="tensorrt")


def test_a_folder_of_neither_kind_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    with pytest.raises(ConfigError, match="neither a run folder, a bundle nor an ONNX file"):
        bench(bundle, folder)


def test_options_of_a_model_are_refused_where_there_is_none(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="belong to a model"):
        bench(bundle, bundle, num_classes=100)


def test_an_edited_bundle_is_refused_and_leaves_no_record(bundle: Path, tmp_path: Path) -> None:
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    record = tmp_path / "record.jsonl"
    with pytest.raises(BundleError):
        bench(bundle, bundle, record=record)
    assert not record.exists()
