"""`polarprune profile`: which counts, which multiples, and layers that really run."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from layer_kinds import KINDS, PLAIN
from torch import Tensor, nn

import polarprune
from polarprune import cli
from polarprune.errors import ConfigError, RunFolderError
from polarprune.latency_cost import LatencyCircuit
from polarprune.latency_table import Staircase, read_latency_table
from polarprune_deploy.layers import profiling
from polarprune_deploy.layers.channel_counts import find_multiples, grid_counts, staircase_counts
from polarprune_deploy.layers.layer_ladder import build_ladder, time_layers
from polarprune_deploy.layers.layer_requests import LayerRequest
from polarprune_deploy.layers.profiling import ProfileRequest, profile
from polarprune_deploy.layers.whole_networks import fit_line, fit_sum


@pytest.fixture
def few_networks(brief_timing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One share of the channels in place of three; each network that is timed is exported."""
    monkeypatch.setattr(profiling, "CALIBRATED", (0.53,))


def staircase(times, counts=tuple(range(96, 161)), noise=0.0, seed=0) -> Staircase:
    generator = np.random.default_rng(seed)
    spread = 1 + noise * generator.standard_normal(len(counts))
    ms = tuple(float(times(c) * s) for c, s in zip(counts, spread, strict=True))
    return Staircase(PLAIN, "inputs", 128, tuple(counts), ms)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("times", "multiples"),
    [
        (lambda c: c, (1,)),  # smooth
        (lambda c: c * (1 if c % 4 == 0 else 1.7), (1, 4)),  # a slower way off the multiples of 4
        (lambda c: -(-c // 16) * 16, (1, 16)),  # blocks of 16
        (lambda c: -(-c // 32) * 32, (1, 32)),
        (lambda c: c * (1 if c % 8 == 0 else 1.4 if c % 2 == 0 else 3), (1, 2, 8)),
    ],
)
def test_the_multiples_are_found_through_noise(times, multiples, seed: int) -> None:
    several = [staircase(times, noise=0.02, seed=10 * seed + number) for number in range(5)]
    assert find_multiples(several) == multiples


def test_one_staircase_in_many_does_not_make_a_multiple() -> None:
    smooth = [staircase(lambda c: c, noise=0.01, seed=seed) for seed in range(4)]
    assert find_multiples([*smooth, staircase(lambda c: c * (1 + (c % 4 > 0)))]) == (1,)


def test_every_class_has_counts_from_few_to_all() -> None:
    counts = grid_counts([256], (1, 4, 16))
    classes = {m: [c for c in counts if c % m == 0] for m in (1, 4, 16)}
    aligned = classes[16]
    by_four = [c for c in classes[4] if c not in aligned]
    off = [c for c in counts if c % 4]
    for found in (aligned, by_four, off):
        assert len(found) >= 4
        assert min(found) <= 64
        assert max(found) >= 256 - 16
    assert counts[-1] == 256
    # In the middle of a step of 16, where a step says neither its best nor its worst.
    assert {c % 16 for c in by_four} == {8}


def test_small_and_shared_layers_have_counts_too() -> None:
    assert grid_counts([1], (1, 4)) == [1]
    assert grid_counts([3], (1, 4, 16)) == [1, 3]
    shared = grid_counts([1024, 64], (1, 16))
    assert min(shared) <= 16
    assert max(shared) == 1024
    assert staircase_counts(3) == [1, 2, 3]
    assert len(staircase_counts(2048)) == 65


@pytest.mark.parametrize(("geometry", "inputs", "outputs", "layer"), KINDS.values(), ids=KINDS)
def test_a_branch_computes_the_layer_it_stands_for(geometry, inputs, outputs, layer) -> None:
    """The layer's own weights are put into torch's layer; both see the same tensor."""
    model = build_ladder([LayerRequest(geometry, inputs, outputs)], batch=2)
    onnx.checker.check_model(model)
    for name in ("before.0.active", "layer.0.result"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    shape = session.get_inputs()[0].shape
    image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    _, given, got = session.run(None, {"image": image})
    weights = {w.name: torch.tensor(onnx.numpy_helper.to_array(w)) for w in model.graph.initializer}
    with torch.no_grad():
        weight = weights["layer.0.w"]
        layer.weight.copy_(weight.T if isinstance(layer, nn.Linear) else weight)
        layer.bias.copy_(weights["layer.0.b"])
        expected = layer(torch.tensor(given)).numpy()
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_layer_of_a_hundred_times_the_work_takes_longer() -> None:
    small, large = LayerRequest(PLAIN, 8, 8), LayerRequest(PLAIN, 256, 256)
    tries = [time_layers([small, large], batch=1, threads=1, seed=seed) for seed in range(3)]
    first, second = map(min, zip(*tries, strict=True))  # something else may run meanwhile
    assert 0 < first < second


def test_the_line_is_found_and_its_constant_is_not_negative() -> None:
    assert fit_line([1, 2, 4], [3, 5, 9]) == pytest.approx((2, 1))
    factor, constant = fit_line([1, 2, 4], [1, 3, 7])  # 2 x - 1
    assert constant == 0
    assert 1 < factor < 2
    assert fit_line([2], [3]) == (1.5, 0)


def test_the_sum_is_found_and_nothing_in_it_is_negative() -> None:
    generator = np.random.default_rng(0)
    parts = generator.uniform(1, 10, (8, 2))
    weights, constant = fit_sum(parts.tolist(), (parts @ [1.1, 1.4] + 0.5).tolist())
    assert (*weights, constant) == pytest.approx((1.1, 1.4, 0.5))
    weights, constant = fit_sum(parts.tolist(), (parts @ [1.0, 0.0]).tolist())
    assert (*weights, constant) == pytest.approx((1, 0, 0), abs=1e-9)
    nothing_off = [[first, 0.0] for first, _ in parts]
    weights, constant = fit_sum(nothing_off, [2 * first + 1 for first, _ in nothing_off])
    assert (*weights, constant) == pytest.approx((2, 0, 1))
    negative = fit_sum(parts.tolist(), (parts @ [2.0, -0.1]).tolist())
    assert min(*negative[0], negative[1]) >= 0


class Tiny(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.inner(x))
        return self.head(x.mean((2, 3)))


def tiny(num_classes: int = 4) -> nn.Module:
    return Tiny(num_classes)


def test_the_verb_writes_a_table_that_fits_its_network(
    few_networks: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [
        "profile", f"{__name__}:tiny", "--num-classes", "4", "--image-size", "8", "--threads", "1",
        "--batch", "2", "--out", str(tmp_path / "t.json"), "--json",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["polarprune", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert not ended.value.code
    document = json.loads(out.splitlines()[-1])
    assert document["table"] == str(tmp_path / "t.json")
    stages = [err.index(stage) for stage in ("staircases", "layers", "whole networks")]
    assert stages == sorted(stages)
    assert "Multiples of" in err or "No multiple" in err

    table = read_latency_table(tmp_path / "t.json")
    assert (table.head["batch"], table.head["threads"]) == (2, 1)
    assert document["multiples"]["inputs"] == list(table.multiples[0])
    gated = polarprune.attach_gates(Tiny(), torch.zeros(1, 3, 8, 8))
    circuit = LatencyCircuit(gated.analysis, gated.circuit, table)
    assert circuit.dense_ms > 0
    # What the table says of the networks it was fitted on is what the circuit says.
    assert table.calibration[0]["predicted_ms"] == pytest.approx(circuit.dense_ms)
    (stem,) = [g for g in table.points if g.size == (8, 8)]
    assert {p.inputs for p in table.points[stem]} >= {8}


def test_torch_profiles_on_a_cpu_what_it_would_on_a_gpu(brief_timing: None, tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    request = ProfileRequest(batch=2, threads=1, backend="torch")
    profile(f"{__name__}:tiny", out, request, num_classes=4, image_size=8)
    table = read_latency_table(out)
    expected = {"backend": "torch", "device": "cpu", "precision": "fp32", "threads": 1,
                "mode": "eager", "layout": "channels_last"}  # fmt: skip
    assert {key: table.head[key] for key in expected} == expected
    assert len(table.calibration) >= 4
    gated = polarprune.attach_gates(Tiny(), torch.zeros(1, 3, 8, 8))
    assert LatencyCircuit(gated.analysis, gated.circuit, table).dense_ms > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_is_profiled_as_graphs(tmp_path: Path) -> None:
    request = ProfileRequest(batch=2, device="cuda")
    table = profile(f"{__name__}:tiny", tmp_path / "t.json", request, num_classes=4, image_size=8)
    assert table.head["gpu"] == torch.cuda.get_device_name()
    assert (table.head["backend"], table.head["mode"]) == ("torch", "graph")
    assert all(0 < each["ms"] < 10 for each in table.calibration)


BAD = {
    "no folder": (
        {"out": "absent/t.json"},
        ConfigError,
        "there is no folder .*absent; make it first",
    ),
    "a folder": ({"out": "."}, ConfigError, "is a folder"),
    "a GPU with the CPU's runtime": (
        {"device": "cuda", "backend": "onnxruntime"},
        ConfigError,
        "--backend torch",
    ),
    "no such backend": ({"backend": "tensorrt"}, ConfigError, "--backend must be one of"),
    "no such device": ({"device": "tpu"}, ConfigError, "device must be one of"),
    "a precision of torch's": ({"precision": "fp16"}, ConfigError, "--precision fp16 is for"),
    "threads of a GPU": ({"device": "cuda", "threads": 2}, ConfigError, "--threads is for"),
    "no such model": ({"x": "resnet21"}, ConfigError, "resnet21"),
    "no such run": ({"x": "./nowhere"}, RunFolderError, "nowhere"),
}


@pytest.mark.parametrize(("changes", "kind", "words"), BAD.values(), ids=BAD)
def test_bad_requests_leave_nothing(tmp_path: Path, changes, kind, words) -> None:
    options = {"x": "resnet20", "out": "t.json", **changes}
    out = tmp_path / options.pop("out")
    with pytest.raises(kind, match=words) as caught:
        profile(options.pop("x"), out, ProfileRequest(**options))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("batch", 0), ("threads", -1)])
def test_numbers_out_of_range_name_their_option(option: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"--{option} must be at least 1"):
        ProfileRequest(**{option: value})
