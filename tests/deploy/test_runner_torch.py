"""torch as a backend, on a CPU: its modes, precisions, and what it loads from disk."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polarprune
from polarprune.errors import ConfigError, ParityError, Refused
from polarprune_deploy import load_runner
from polarprune_deploy.backends.input_making import random_inputs
from polarprune_deploy.backends.runner_torch import TorchRunner, fresh_compilation
from polarprune_deploy.latency import compare_latency
from tests.deploy.refilled_runs import check_refills


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Twofold(nn.Module):
    """Two outputs with names."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"sum": x.sum((1, 2, 3)), "largest": x.amax((1, 2, 3))}


def make(net: nn.Module, **options: object) -> TorchRunner:
    return TorchRunner(net, (3, 16, 16), name="mine", threads=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 5e-3), ("bf16", 5e-2)]
)
def test_it_computes_what_the_network_computes(precision: str, tolerance: float) -> None:
    net = network()
    runner = make(net, precision=precision)
    inputs = random_inputs(runner, 3, np.random.default_rng(0))
    with torch.no_grad():
        plain = copy.deepcopy(net).eval().double()
        expected = plain(torch.from_numpy(inputs["input"]).double()).numpy()
    got = runner.run(inputs)["logits"]
    assert got.dtype in (np.float32, np.float16)  # what numpy has
    np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max())
    assert (runner.precision, runner.backend, runner.device) == (precision, "torch", "cpu")
    assert net.training  # the user's network is left as it was
    assert next(net.parameters()).dtype == torch.float32


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler here")
@pytest.mark.slow
def test_a_compiled_network_computes_the_same_at_every_batch_size() -> None:
    runner = make(network(), mode="compile")
    eager = make(runner._source)
    for batch in (1, 3):
        inputs = random_inputs(runner, batch, np.random.default_rng(batch))
        got, expected = runner.run(inputs)["logits"], eager.run(inputs)["logits"]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert runner.settings["mode"] == "compile"
    with fresh_compilation():
        np.testing.assert_allclose(runner.run(inputs)["logits"], expected, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_compiled_is_refused_and_not_run_eagerly() -> None:
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x  # depends on data: a graph break

    runner = make(Undecided(), mode="compile")
    with pytest.raises(Refused, match="torch does not run mine in mode compile") as caught:
        runner.prepare(random_inputs(runner, 1, np.random.default_rng(0)))
    assert "\n" not in str(caught.value)


def test_a_network_that_cannot_take_the_input_is_refused_in_one_line() -> None:
    runner = make(nn.Conv2d(4, 8, 3))
    with pytest.raises(Refused, match="in mode eager at batch 2 ") as caught:
        runner.prepare(random_inputs(runner, 2, np.random.default_rng(0)))
    assert "\n" not in str(caught.value)


def test_outputs_are_poisoned_until_a_run_fills_them_and_keep_their_names() -> None:
    runner = make(Twofold())
    prepared = runner.prepare(random_inputs(runner, 2, np.random.default_rng(0)))
    assert all(np.all(np.isnan(array)) for array in prepared.outputs().values())
    prepared()
    assert {name: array.shape for name, array in prepared.outputs().items()} == {
        "sum": (2,),
        "largest": (2,),
    }


def test_weights_and_images_lie_channels_last() -> None:
    runner = make(network())
    prepared = runner.prepare(random_inputs(runner, 2, np.random.default_rng(0)))
    assert prepared._x.is_contiguous(memory_format=torch.channels_last)
    assert runner._network is not None
    weight = next(runner._network.parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_the_digest_follows_the_weights() -> None:
    net = network()
    before = make(net).sha256
    assert make(net).sha256 == make(net).twin().sha256 == before
    with torch.no_grad():
        next(net.parameters())[0, 0, 0, 0] += 1
    assert make(net).sha256 != before


def test_a_side_that_is_not_what_its_reference_says_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runners = [make(network(), precision="bf16") for _ in range(2)]
    monkeypatch.setattr(
        TorchRunner, "expected", lambda self, inputs: {"logits": np.full((4, 4), 100.0)}
    )
    with pytest.raises(ParityError, match=r"mine differs by .* in bf16 from its float32 reference"):
        compare_latency(runners, batch=5)


def test_inputs_that_do_not_fit_and_closed_runners_are_refused() -> None:
    runner = make(network())
    with pytest.raises(ConfigError, match="takes the input 'input'"):
        runner.run({"image": np.zeros((1, 3, 16, 16), np.float32)})
    with pytest.raises(ConfigError, match="must be floats of shape"):
        runner.run({"input": np.zeros((1, 3, 16, 15), np.float32)})
    runner.close()
    runner.close()
    with pytest.raises(ConfigError, match="closed"):
        runner.run({"input": np.zeros((1, 3, 16, 16), np.float32)})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = polarprune.build_network("resnet20", num_classes=10)
    small = polarprune.collapse(polarprune.attach_gates(net, torch.zeros(2, 3, 16, 16)))
    polarprune.save_network(small, tmp_path / "small")
    return tmp_path / "small"


def test_a_saved_network_is_loaded_by_its_folder(saved: Path) -> None:
    runner = load_runner(saved, "torch", threads=1)
    inputs = random_inputs(runner, 2, np.random.default_rng(0))
    assert inputs["input"].shape == (2, 3, 16, 16)
    net = polarprune.load_network(saved)
    with torch.no_grad():
        expected = net(torch.from_numpy(inputs["input"])).numpy()
    np.testing.assert_allclose(runner.run(inputs)["logits"], expected, rtol=1e-4, atol=1e-5)
    assert runner.name == "small"


def test_what_holds_no_network_for_torch_is_refused(
    bundle: Path, tmp_path: Path, convolutions: Callable[..., Path]
) -> None:
    for path in (bundle, convolutions(1)):
        with pytest.raises(
            ConfigError, match="holds ONNX, which torch does not run; use --backend"
        ):
            load_runner(path, "torch")
    with pytest.raises(ConfigError, match="neither a run folder nor a saved network"):
        load_runner(tmp_path, "torch")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("mode", ["eager", "graph", "compile", "compile-graph"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu_every_mode_tells_device_time_within_host_latency(
    mode: str, precision: str
) -> None:
    from torchvision.models import resnet18

    net = resnet18(num_classes=10)
    options = {"device": "cuda", "mode": mode, "precision": precision}
    runners = [
        TorchRunner(net, (3, 64, 64), name=name, **options)  # type: ignore[arg-type]
        for name in ("one", "two")
    ]
    (got,) = compare_latency(runners, batch=8)
    assert got.device_time is not None
    assert 0 < got.device_time.ms < 1.2 * got.ms
    assert got.reference_errors["candidate"] < 0.1
    assert got.verdict in ("no_difference_shown", "inconclusive")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 4, 4), (5,)], ids=["image", "grey", "vector"])
def test_other_inputs_are_copied_in_and_nobody_elses_array_is_written(
    shape: tuple[int, ...], precision: str
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.ReLU())
    check_refills(TorchRunner(net, shape, name="mine", threads=1, precision=precision))
