"""`train` on real digits: the run folder, resuming, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from digit_runs import EPOCHS, Killed, config, kill_in_epoch
from torch import nn

import polarprune
from polarprune.datasets import load_dataset
from polarprune.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PolarpruneError,
    RunFolderError,
    TrainingError,
    WeightsError,
)
from polarprune.networks import build_network
from polarprune.runs.evaluation import evaluate
from polarprune.runs.run_folder import RunFolder
from polarprune.runs.run_records import make_run_folder
from polarprune.runs.train_config import TrainConfig
from polarprune.runs.training import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(config(out))
    return RunFolder(out)


def test_a_run_is_at_or_under_its_target_and_says_what_it_cost(finished: RunFolder) -> None:
    result = finished.result
    assert result["macs_ratio"] <= 0.5
    assert result["macs"] == polarprune.count_macs(
        finished.pruned_network(), torch.zeros(1, *finished.input_shape)
    )
    assert result["dense_macs"] == polarprune.count_macs(
        finished.base_network(), torch.zeros(1, *finished.input_shape)
    )
    assert 0.4 < result["train_macs_ratio"] < 1.02
    cuts = finished.cuts()
    assert cuts[-1]["macs_after"] == result["macs"]
    for cut in cuts:
        assert cut["max_rel_error"] <= 1e-9
        assert cut["certificate"]["passed"]
        assert 0 <= cut["top1_before"] <= 1
    assert [line["epoch"] for line in finished.metrics()] == list(range(1, EPOCHS + 1))
    assert all(line["images_per_s"] > 0 for line in finished.metrics())


def test_openness_is_recorded_for_every_unit_of_every_site(finished: RunFolder) -> None:
    lines = finished.openness()
    assert lines
    units = {site: values[2] for site, values in _kept(finished).items()}
    for line in lines:
        assert {site: len(values) for site, values in line["open"].items()} == units
        assert all(0 <= p <= 1 for values in line["open"].values() for p in values)


def _kept(run: RunFolder) -> dict[str, list]:
    document = json.loads((run.path / "pruned" / "network.json").read_text())
    return document["base"]["kept"]


@pytest.mark.parametrize("epoch", [2, 3, 5], ids=["searching", "around the cut", "settled"])
def test_a_killed_run_resumes_bit_for_bit(finished: RunFolder, tmp_path: Path, epoch: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(config(out), kill_in_epoch(epoch))
    train(config(out, resume=True))
    expected = finished.pruned_network().state_dict()
    got = RunFolder(out).pruned_network().state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    without_times = [{**m, "seconds": 0, "images_per_s": 0} for m in RunFolder(out).metrics()]
    assert without_times == [{**m, "seconds": 0, "images_per_s": 0} for m in finished.metrics()]
    assert RunFolder(out).cuts() == finished.cuts()
    assert RunFolder(out).openness() == finished.openness()
    assert RunFolder(out).result["train_macs_ratio"] == finished.result["train_macs_ratio"]


def test_layers_that_were_frozen_stay_frozen_behind_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frozen(*args: object, **options: object) -> nn.Module:
        net = polarprune.build_network(*args, **options)
        net.conv1.weight.requires_grad_(False)
        return net

    monkeypatch.setattr("polarprune.runs.training.build_network", frozen)
    train(config(tmp_path / "whole"))
    with pytest.raises(Killed):
        train(config(tmp_path / "broken"), kill_in_epoch(4))  # settled by then
    train(config(tmp_path / "broken", resume=True))
    expected = RunFolder(tmp_path / "whole").pruned_network().state_dict()
    got = RunFolder(tmp_path / "broken").pruned_network().state_dict()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_evaluation_leaves_each_layer_in_its_mode() -> None:
    net = polarprune.build_network("resnet20", num_classes=10).train()
    net.bn1.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    data = load_dataset("digits", image_size=8)
    assert 0 <= evaluate(net, data.test) <= 1
    assert modes == {name: module.training for name, module in net.named_modules()}


def test_the_seed_decides_the_run(finished: RunFolder, tmp_path: Path) -> None:
    losses = []
    for seed in (0, 1):
        with pytest.raises(Killed):
            train(config(tmp_path / str(seed), seed=seed), kill_in_epoch(2))
        losses.append(RunFolder(tmp_path / str(seed)).metrics()[0]["loss"])
    assert losses[0] == finished.metrics()[0]["loss"]
    assert losses[1] != losses[0]


def test_resuming_a_finished_run_returns_its_result(finished: RunFolder) -> None:
    assert train(config(finished.path, resume=True)).top1 == finished.result["top1"]


def test_target_1_trains_dense_and_keeps_everything(tmp_path: Path) -> None:
    result = train(config(tmp_path / "run", target=1.0, epochs=1))
    assert result.macs == result.dense_macs
    assert result.params == result.dense_params
    assert result.blocks_removed == 0
    assert result.train_macs_ratio == 1.0
    assert RunFolder(tmp_path / "run").cuts() == []


def test_the_random_control_meets_the_target(tmp_path: Path) -> None:
    result = train(config(tmp_path / "run", method="random", epochs=2, align=8))
    assert 0.2 < result.macs_ratio <= 0.5
    kept = _kept(RunFolder(tmp_path / "run"))
    assert all(k % 8 == 0 for kind, k, _ in kept.values() if kind == "channel")


def test_a_target_of_parameters_is_a_bound(tmp_path: Path) -> None:
    shown = []
    result = train(
        config(tmp_path / "run", model="resnet20", target=None, target_params=0.5, epochs=2),
        lambda text, step, steps, figures: shown.append(figures["kept parameters"]),
    )
    assert 0.45 * result.dense_params < result.params <= 0.5 * result.dense_params
    assert (shown[0], shown[-1]) == (1.0, result.params / result.dense_params)


@pytest.mark.parametrize(
    "changes", [{}, {"method": "mask-predictor", "target": None}], ids=["bounded", "not"]
)
def test_progress_shows_the_kept_macs(tmp_path: Path, changes: dict) -> None:
    shown = []
    result = train(
        config(tmp_path / "run", epochs=2, **changes),
        lambda text, step, steps, figures: shown.append(figures["kept MACs"]),
    )
    assert (shown[0], shown[-1]) == (1.0, result.macs_ratio)


@pytest.mark.parametrize("granularity", ["block", "channel"])
def test_granularity_decides_which_sites_are_gated(tmp_path: Path, granularity: str) -> None:
    train(config(tmp_path / "run", granularity=granularity, epochs=1, target=0.6))
    assert {kind for kind, _, _ in _kept(RunFolder(tmp_path / "run")).values()} == {granularity}


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"

    with pytest.raises(Killed):
        train(config(out), kill_in_epoch(3))
    before = {p.name: p.read_bytes() for p in (out / "checkpoint").iterdir() if p.is_file()}
    with pytest.raises(TrainingError, match=r"not finite in epoch 3; the last checkpoint is kept"):
        _train_with_broken_batches(config(out, resume=True))
    after = {p.name: p.read_bytes() for p in (out / "checkpoint").iterdir() if p.is_file()}
    assert before == after


@pytest.mark.parametrize("existed", [False, True])
def test_a_new_run_that_fails_before_its_first_checkpoint_leaves_nothing(
    tmp_path: Path, existed: bool
) -> None:
    out = tmp_path / "run"
    if existed:
        out.mkdir()
    with pytest.raises(TrainingError, match="not finite in epoch 1; no checkpoint was written yet"):
        _train_with_broken_batches(config(out))
    assert list(tmp_path.rglob("*")) == ([out] if existed else [])
    with pytest.MonkeyPatch.context() as patch:  # when the epoch has left its lines and events
        patch.setattr("polarprune.runs.training.write_run", _fail_half_way)
        with pytest.raises(OSError, match="No space left"):
            train(config(out, epochs=2))
    assert list(tmp_path.rglob("*")) == ([out] if existed else [])
    train(config(out, epochs=1))


def _fail_half_way(checkpoint: Path, *_: object) -> None:
    checkpoint.with_name("checkpoint.new").mkdir()
    written = {path.name for path in checkpoint.parent.iterdir()}
    assert {"run.json", "metrics.jsonl", "openness.jsonl"} <= written
    raise OSError(28, "No space left on device")


def test_what_others_put_into_the_folder_of_a_false_start_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def progress(*_: object) -> None:
        (out / "train.log").write_text("mine")
        raise Killed

    with pytest.raises(Killed):
        train(config(out), progress)
    assert [path.name for path in out.iterdir()] == ["train.log"]


def test_a_run_that_is_stopped_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(out, epochs=1), interrupt)
    with pytest.raises(Killed):  # nor does a second failure take what the first one left
        train(config(out, epochs=1, resume=True), kill_in_epoch(1))
    train(config(out, epochs=1, resume=True))


def _train_with_broken_batches(settings: TrainConfig) -> None:
    from polarprune.datasets.memory import MemorySplit

    original = MemorySplit._normalised
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemorySplit, "_normalised", lambda s, x: original(s, x) * float("nan"))
        train(settings)


BAD = {
    "target 0": ({"target": 0.0}, ConfigError, "--target must be above 0"),
    "target 1.5": ({"target": 1.5}, ConfigError, "--target must be above 0 and at most 1"),
    "target unreachable": ({"target": 0.0001}, ConfigError, "cannot be reached"),
    "target nan": ({"target": float("nan")}, ConfigError, "--target must be"),
    "method": ({"method": "magic"}, ConfigError, "--method must be one of .*, got 'magic'"),
    "granularity": ({"granularity": "layer"}, ConfigError, "--granularity must be one of"),
    "schedule": ({"schedule": "steps"}, ConfigError, "--schedule must be one of"),
    "precision": ({"precision": "fp8"}, ConfigError, "--precision must be one of"),
    "device": ({"device": "tpu"}, ConfigError, "--device must be one of"),
    "epochs": ({"epochs": 0}, ConfigError, "--epochs must be at least 1"),
    "batch size": ({"batch_size": 1}, ConfigError, "--batch-size must be at least 2"),
    "align": ({"align": 0}, ConfigError, "--align must be at least 1"),
    "image size": ({"image_size": 0}, ConfigError, "--image-size must be at least 1"),
    "number of classes": ({"num_classes": 0}, ConfigError, "--num-classes must be at least 1"),
    "seed": ({"seed": 10**17}, ConfigError, "--seed must be at most 4294967295"),
    "lr": ({"lr": -1.0}, ConfigError, "--lr must be a number above 0"),
    "momentum": ({"momentum": 1.0}, ConfigError, "--momentum must be"),
    "classes": ({"num_classes": 3}, ConfigError, "--num-classes is 3"),
    "data": ({"data": "no/such/folder"}, DataError, "does not exist"),
    "model": ({"model": "resnet21"}, ConfigError, "resnet21"),
    "weights": ({"weights": Path("no.safetensors")}, WeightsError, "no.safetensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    changes, kind, words = BAD[case]
    with pytest.raises(kind, match=words) as caught:
        train(config(tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, PolarpruneError)
    assert not (tmp_path / "run").exists()


def test_weights_of_the_wrong_shape_are_named(tmp_path: Path) -> None:
    net = polarprune.build_network("resnet20", num_classes=7)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"linear\.(weight|bias)"):
        train(config(tmp_path / "run", weights=tmp_path / "w.pt"))
    assert not (tmp_path / "run").exists()


def test_half_of_a_first_file_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run.json.new").write_text('{"schema"')
    train(config(tmp_path, epochs=1))
    assert not (tmp_path / "run.json.new").exists()
    assert RunFolder(tmp_path).document["result"]


def test_a_folder_with_another_run_is_not_touched(finished: RunFolder) -> None:
    before = sorted(p.name for p in finished.path.iterdir())
    with pytest.raises(RunFolderError, match="is not empty"):
        train(config(finished.path))
    with pytest.raises(RunFolderError, match=r"epochs = 5, not 6"):
        train(config(finished.path, epochs=6, resume=True))
    assert before == sorted(p.name for p in finished.path.iterdir())


def test_resume_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"run\.json"):
        train(config(tmp_path / "none", resume=True))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, file: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(config(out), kill_in_epoch(2))
    broken = out / "checkpoint" / file
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        train(config(out, resume=True))
    assert "\n" not in str(caught.value)
    if file == "state.json":
        broken.write_text('{"schema": 1}')
        with pytest.raises(CheckpointError, match=r"is not whole .*; move .*run away and start"):
            train(config(out, resume=True))


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config(tmp_path / "eager", epochs=2, precision="fp32"))
    whole = nn.Module.compile
    compiled = []

    def traced_only(module: nn.Module) -> None:  # Inductor would take minutes
        compiled.append(type(module).__name__)
        whole(module, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", traced_only)
    train(config(tmp_path / "compiled", epochs=2, precision="fp32", compile=True))
    assert len(compiled) == 2, "at first, and after the cut"
    eager, other = RunFolder(tmp_path / "eager"), RunFolder(tmp_path / "compiled")
    for line, expected in zip(other.metrics(), eager.metrics(), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert [cut["sites"] for cut in other.cuts()] == [cut["sites"] for cut in eager.cuts()]


def test_a_run_folder_that_cannot_be_made_is_named_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"--out .*file/run cannot be made .*; choose another"):
        make_run_folder(tmp_path / "file" / "run")


def test_what_was_given_is_measured_before_it_is_trained(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = build_network("digit_runs:resnet8", num_classes=12)
    net.linear.bias.data[0] = 1e3  # always the same answer
    torch.save(net.state_dict(), tmp_path / "given.pt")
    told: dict[str, dict[str, float]] = {}

    def progress(text: str, step: int, steps: int, figures: dict[str, float]) -> None:
        if steps == 0:
            told[text] = figures

    wanted = config(tmp_path / "run", weights=tmp_path / "given.pt", num_classes=12, epochs=1)
    result = train(wanted, progress)
    top1 = evaluate(net, load_dataset("digits", image_size=8).test)
    assert 0.05 < top1 < 0.2
    assert told == {"2 outputs have no class in digits": {}, "the weights given": {"top1": top1}}
    assert result.as_dict()["given_top1"] == top1
    assert "given_top1" not in train(replace(wanted, out=tmp_path / "b", weights=None)).figures
