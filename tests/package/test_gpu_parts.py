"""Parts of the GPU benchmark by themselves: order, records, refusals, and going on."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polarprune
from benchmarks import readme_results
from benchmarks.gpu import latency, recorded_timer
from benchmarks.gpu.deadline import Deadline, TimeIsUp
from benchmarks.gpu.latency_cells import NETWORKS, Cell, Costs, ordered_cells
from benchmarks.gpu.predicted import predict, prediction_table
from benchmarks.gpu.record_file import RecordFile
from benchmarks.gpu.staircase import read_staircases, staircase_table, time_convolutions
from benchmarks.gpu.uniform_networks import NetworkCuts, Side, Sides
from polarprune.errors import BackendUnavailable, ConfigError, ParityError, Refused
from polarprune.graph.geometry import Geometry
from polarprune_deploy import timing
from polarprune_deploy.layers import layer_replay
from polarprune_deploy.layers.layer_requests import LayerRequest
from polarprune_deploy.layers.layer_timers import TorchTimer
from polarprune_deploy.layers.profiling import ProfileRequest

HEAD = {"part": "latency", "what": "a test", "device": "a device", "dry_run": True, "seed": 0}


@pytest.fixture(autouse=True)
def without_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUT", raising=False)


def record_at(path: Path | None, **changes: Any) -> Any:
    return RecordFile(path, {**HEAD, **changes})


def test_the_headline_comes_first_and_every_cell_once() -> None:
    cells = ordered_cells(
        NETWORKS,
        (0.5, 0.25, 0.75),
        ("fp16", "bf16"),
        ("compile", "eager", "graph"),
        (256, 8, 64, 1),
    )
    assert len(set(cells)) == len(cells) == 6 * 3 * 2 * 3 * 4
    assert {str(cell) for cell in cells[:2]} == {
        f"resnet50 at 0.5 of its MACs, fp16, graph, batch {batch}" for batch in (1, 64)
    }
    # Of all that differs in one thing from the headline, the strangest is the compiled one.
    place = {cell: number for number, cell in enumerate(cells)}
    headline = cells[0]
    assert place[replace(headline, network="resnet18")] < place[replace(headline, kept=0.25)]
    assert place[replace(headline, precision="bf16")] < place[replace(headline, mode="compile")]


def test_a_later_cell_is_guessed_by_what_was_seen() -> None:
    costs = Costs()
    cell = Cell("resnet50", 0.5, "fp16", "graph", 64)
    first = costs.guess(cell, built=True)
    assert costs.guess(replace(cell, batch=256), built=True) > first
    assert costs.guess(cell, built=False) > first
    assert costs.guess(replace(cell, mode="compile"), built=True) > 2 * first
    costs.saw(cell, 8.0)
    assert costs.guess(cell, built=True) == pytest.approx(10.0)
    assert costs.guess(replace(cell, network="resnet18"), built=True) == pytest.approx(10.0)
    assert costs.guess(replace(cell, batch=1), built=True) == first


def test_a_record_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record = record_at(path)
    record.add("cell", number=1)
    record.add("cell", number=2)
    path.write_text(path.read_text()[:-5])
    again = record_at(path)
    assert [line["number"] for line in again.all("cell")] == [1]
    again.add("cell", number=3)
    assert [line["number"] for line in record_at(path).all("cell")] == [1, 3]
    assert [each.name for each in tmp_path.iterdir()] == ["r.jsonl"]


def test_another_record_is_taken_over_whole(tmp_path: Path) -> None:
    old = record_at(tmp_path / "old.jsonl")
    old.add("cell", number=1)
    new = RecordFile(tmp_path / "out" / "new.jsonl", HEAD, tmp_path / "old.jsonl")
    new.add("cell", number=2)
    assert [line["number"] for line in record_at(new.path).all("cell")] == [1, 2]
    assert [line["number"] for line in record_at(old.path).all("cell")] == [1]


@pytest.mark.parametrize(("key", "value"), [("device", "another"), ("seed", 1), ("part", "cifar")])
def test_rows_of_another_device_or_request_never_meet(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "r.jsonl"
    record_at(path).add("cell", number=1)
    before = path.read_text()
    with pytest.raises(ConfigError, match=f"its {key} is"):
        record_at(path, **{key: value})
    assert path.read_text() == before


def test_a_record_that_is_broken_or_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record_at(path).add("cell", number=1)
    path.write_text("{not json\n" + path.read_text())
    with pytest.raises(ConfigError, match=r"line 1 of .* is no JSON"):
        record_at(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        RecordFile(None, HEAD, tmp_path / "absent.jsonl")


class FakeComparison:
    def __init__(self, name: str) -> None:
        self.name = name
        self.gpu, self.samples = None, ()

    def conclusions(self) -> dict[str, Any]:
        return {"candidate": self.name, "gpu": None}


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A latency part over sides that are only names; `raising` is asked before timing."""

    class Networks:
        def __init__(self, name: str, image_size: int, seed: int) -> None:
            pass

        def at(self, kept: float) -> Sides:
            side = Side(None, {"macs_ratio": kept})
            return Sides(side, {"channels": side, "blocks": side}, {"channels aligned to 8": "no"})

        def has(self, kept: float) -> bool:
            return True

    def compare(runners: Sequence[str], **options: Any) -> list[FakeComparison]:
        error = found.raising(list(runners))
        if error is not None:
            raise error
        return [FakeComparison(name) for name in runners[1:]]

    monkeypatch.setattr(latency, "NetworkCuts", Networks)
    monkeypatch.setattr(latency, "load_sides", lambda sides, *_: list(sides))
    monkeypatch.setattr(latency, "compare_latency", compare)
    found = latency.LatencyPart(
        record_at(None), Deadline(500.0), "cpu", "a device", 32, 40, 0, 10
    )  # fmt: skip
    found.raising = lambda names: None
    return found


def cell() -> Any:
    return Cell("resnet18", 0.5, "fp32", "eager", 1)


def rows_of(part: Any) -> dict[str, str]:
    (line,) = part.record.all("cell")
    return {row["cut"]: row.get("not_timed", "timed") for row in line["rows"]}


def test_a_cut_that_there_is_not_is_a_row(part: Any) -> None:
    assert part.run([cell()]) == []
    assert rows_of(part) == {"channels": "timed", "blocks": "timed", "channels aligned to 8": "no"}
    assert part.run([cell()]) == []
    assert len(list(part.record.all("cell"))) == 1


def test_one_wrong_output_does_not_cost_the_others_their_rows(part: Any) -> None:
    part.raising = lambda names: ParityError("wrong") if "channels" in names else None
    part.run([cell()])
    assert rows_of(part) == {"channels": "wrong", "blocks": "timed", "channels aligned to 8": "no"}


@pytest.mark.parametrize("error", [Refused("too slow"), BackendUnavailable("no CUDA provider")])
def test_what_is_refused_is_a_row_a_cut_and_not_tried_again(part: Any, error: Exception) -> None:
    part.raising = lambda names: error
    part.run([cell()])
    assert set(rows_of(part).values()) == {str(error)}
    assert len(rows_of(part)) == 5
    part.run([cell()])
    assert len(list(part.record.all("cell"))) == 1


def test_what_failed_is_tried_again(part: Any) -> None:
    part.raising = lambda names: RuntimeError("CUDA error\nmore")
    part.run([cell()])
    (line,) = part.record.all("cell")
    assert line["failed"] == "RuntimeError: CUDA error"
    part.raising = lambda names: None
    part.run([cell()])
    assert len(list(part.record.all("cell"))) == 2


def test_no_time_is_no_refusal(part: Any) -> None:
    part.deadline = Deadline(100.0)
    part.raising = lambda names: Refused("40 rounds would take 200 s, over the 99 s allowed")
    assert part.run([cell()]) == [cell()]
    assert not list(part.record.all("cell"))
    part.deadline = Deadline(1.0)
    part.raising = lambda names: pytest.fail("it was begun")
    assert part.run([cell()]) == [cell()]


@pytest.mark.study
def test_networks_say_what_they_cannot_keep() -> None:
    found = NetworkCuts("mobilenet_v2", 32, 0).at(0.25)
    assert "no choice of blocks" in found.refused["blocks"]
    assert found.dense.facts["macs_ratio"] == 1.0
    for side in found.cuts.values():
        assert side.facts["macs_ratio"] <= 0.25
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert found.cuts["channels"].network(images).abs().max() > 1e-3


class CountingTimer:
    """A layer takes as many milliseconds as it has MACs a pixel, in thousands."""

    def __init__(self) -> None:
        self.head = {"backend": "torch", "device": "cpu", "precision": "fp32", "threads": 1}
        self.timed: list[LayerRequest] = []

    def time_layers(self, requests: Sequence[LayerRequest], **_: Any) -> list[float]:
        self.timed += requests
        return [each.inputs * each.outputs / 1e3 for each in requests]


def test_layers_that_are_recorded_are_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_timer, "CHUNK", 4)
    geometry = Geometry("conv", (3, 3), (1, 1), (1, 1), (1, 1), (6, 6))
    requests = [LayerRequest(geometry, 2, count) for count in (*range(1, 10), 1)]
    record, inner = record_at(None), CountingTimer()

    def timer(seconds: float) -> Any:
        return recorded_timer.RecordedTimer(inner, record, Deadline(seconds))

    with pytest.raises(TimeIsUp, match="the last 9 layers"):
        timer(0.0).time_layers(requests, batch=1, seed=0, progress=lambda *_: None)
    assert inner.timed == []
    steps: list[int] = []

    def stop(done: int, of: int) -> None:
        steps.append(done)
        if len(steps) == 2:
            raise TimeIsUp("amid")

    with pytest.raises(TimeIsUp):
        timer(100.0).time_layers(requests, batch=1, seed=0, progress=stop)
    assert steps == [4, 8]
    found = timer(100.0).time_layers(requests, batch=1, seed=0, progress=lambda *_: None)
    assert found == [2 * each.outputs / 1e3 for each in requests]
    assert len(inner.timed) == len(set(inner.timed)) == 9


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.inner(x))
        return self.head(x.mean((2, 3)))


def test_staircases_go_on_with_what_is_missing() -> None:
    gated = polarprune.attach_gates(Tiny(), torch.zeros(1, 3, 8, 8))
    record, timer = record_at(None), CountingTimer()
    with pytest.raises(TimeIsUp):
        time_convolutions(gated, timer, record, Deadline(0.0), [1], 0, "a device")
    assert timer.timed == []
    for batches in ([1], [1, 2]):
        time_convolutions(gated, timer, record, Deadline(500.0), batches, 0, "a device")
    found = read_staircases(record)
    assert set(found) == {1, 2}
    assert len(timer.timed) == sum(len(s.counts) for each in found.values() for s in each)
    assert all(s.ms == tuple(c * s.other / 1e3 for c in s.counts) for s in found[1])
    assert staircase_table(record).row_count > len(found[1])


@pytest.mark.slow
def test_predictions_go_on_from_the_table(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(timing, "WARM_UP_LIMIT_NS", 1)
    monkeypatch.setattr(timing, "WARM_UP_WINDOW_NS", 1_000_000)
    monkeypatch.setattr(timing, "BLOCK_MS", 2.0)
    for name in ("_POINT_MS", "_CYCLE_MS", "_WARM_UP_S"):
        monkeypatch.setattr(layer_replay, name, 0.01)
    gated = polarprune.attach_gates(Tiny(), torch.zeros(1, 3, 8, 8))
    timer = TorchTimer("cpu", "fp32", 1)
    request = ProfileRequest(2, 1, 0, "torch")
    record = record_at(tmp_path / "predicted.jsonl")
    head = {"model": "tiny", "input_shape": [3, 8, 8]}

    def call(seconds: float, n: int = 2, given: Path | None = None, into: Any = record) -> None:
        predict(gated, head, request, timer, into, Deadline(seconds), n, given)

    with pytest.raises(TimeIsUp, match="the random networks"):
        call(400.0, n=1000)
    assert not list(record.all("networks"))
    (table,) = record.all("table")
    call(400.0)
    assert list(record.all("table")) == [table]
    (line,) = record.all("networks")
    assert [row["align"] for row in line["rows"]] == [1, 1, 8, 8]
    assert all(math.isfinite(row["table_ms"]) and row["ms"] > 0 for row in line["rows"])
    assert prediction_table(record).row_count == 2
    file = tmp_path / "predicted.table.json"
    assert json.loads(file.read_text())["model"] == "tiny"
    # A table that was made before is taken as it is, but not another device's.
    other = record_at(None)
    call(400.0, given=file, into=other)
    assert next(other.all("table"))["document"] == table["document"]
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "precision": "fp16"}))
    with pytest.raises(ConfigError, match="measured with precision 'fp16'"):
        call(400.0, given=file, into=record_at(None))


def test_the_readme_prefers_the_new_record(tmp_path: Path, monkeypatch: Any) -> None:
    old = readme_results.gpu_cuts()
    assert "half of its units cut" in old
    row = {"speedup": 1.5, "ci_low": 1.25, "ci_high": 1.75, "verdict": "no_difference_shown"}
    cuts = ("channels", "channels aligned to 8", "channels aligned to 32")
    rows = [{"cut": cut, **row} for cut in cuts] + [{"cut": "blocks", "not_timed": "no"}]
    record = record_at(tmp_path / "uniform_cuts.jsonl", device="NVIDIA X", dry_run=False)
    head = {"network": "resnet50", "kept": 0.5, "precision": "fp16", "mode": "graph"}
    record.add("cell", **head, batch=1, rows=rows)
    record.add("cell", **{**head, "mode": "eager"}, batch=64, rows=[])
    monkeypatch.setattr(readme_results, "UNIFORM_CUTS", record.path)
    with pytest.raises(ValueError, match="no measured ResNet-50"):
        readme_results.gpu_cuts()
    record.add("cell", **head, batch=64, rows=[{**each, "speedup": 2.0} for each in rows])
    text = readme_results.gpu_cuts()
    assert text.startswith("NVIDIA X, ResNet-50 of random weights (latency only)")
    both = "1.50 x [1.25, 1.75], no difference shown and 2.00 x [1.25, 1.75], no difference shown"
    assert f"unaligned channels {both}; aligned to 8 {both}" in text
    assert "blocks not timed and not timed" in text
