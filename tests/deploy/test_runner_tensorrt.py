"""An engine behind the runner protocol, on a TensorRT that only pretends: order, shapes, digests.

Whether a real engine runs is not shown here: that takes a GPU.
"""

import dataclasses
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import CpuGpu, engine_text, fake_module

from polarprune.errors import BackendUnavailable, BundleError, ConfigError, Refused
from polarprune.manifest import (
    BatchProfile,
    EngineInfo,
    FileEntry,
    TensorSpec,
    read_manifest,
    write_manifest,
)
from polarprune_deploy.backends import loading
from polarprune_deploy.backends.input_making import random_inputs, taken_batches
from polarprune_deploy.backends.network_bytes import EngineBytes, NetworkBytes, read_engine
from polarprune_deploy.backends.runner_tensorrt import TensorRtRunner
from polarprune_deploy.backends.runners import DeviceTimed, RefillableRun
from polarprune_deploy.latency import compare_latency

ONNX = NetworkBytes("net", b"", "1" * 64, "fp32")
PROFILES = (BatchProfile(1, 1, 1), BatchProfile(1, 8, 16))
ENGINE = EngineBytes("net", engine_text(), "0" * 64, "fp32", "tensorrt", PROFILES, ONNX)
RTX = dataclasses.replace(ENGINE, runtime="tensorrt_rtx")


@pytest.fixture(autouse=True)
def no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine has no ONNX file."""
    monkeypatch.setattr(TensorRtRunner, "expected", lambda self, inputs: None)


@pytest.mark.parametrize("engine", [ENGINE, RTX], ids=["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (2, 1), (16, 1)])
def test_an_engine_runs_at_each_batch_in_the_tightest_profile(
    engine: EngineBytes, batch: int, profile: int
) -> None:
    trt = fake_module(engine.runtime)
    runner = TensorRtRunner(engine, trt, gpu=CpuGpu())
    assert runner.inputs == (TensorSpec("image", "float32", (-1, 3, 4, 4)),)
    inputs = random_inputs(runner, batch, np.random.default_rng(0))
    prepared = runner.prepare(inputs)
    assert isinstance(prepared, DeviceTimed)
    assert np.all(np.isnan(prepared.outputs()["mean"]))  # poisoned after the first run
    prepared()
    expected = 2.0 * inputs["image"].mean((1, 2, 3))[:, None]
    np.testing.assert_allclose(prepared.outputs()["mean"], expected, rtol=1e-5, atol=1e-6)
    (context,) = trt.engines[0].contexts
    assert context.profile == profile
    assert context.runs == [77, 77]  # on the explicit stream


def test_an_rtx_engine_compiles_before_it_is_timed_and_captures_by_itself() -> None:
    for mode, strategy in (("eager", "DISABLED"), ("graph", "WHOLE_GRAPH_CAPTURE")):
        trt, gpu = fake_module("tensorrt_rtx"), CpuGpu()
        runner = TensorRtRunner(RTX, trt, mode=mode, gpu=gpu)
        runner.run(random_inputs(runner, 2, np.random.default_rng(0)))
        config = trt.engines[0].contexts[0].config
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        assert config.cuda_graph_strategy.name == strategy
        assert gpu.captured == 0


def test_a_graph_of_enterprise_tensorrt_is_captured_once_and_replayed() -> None:
    gpu = CpuGpu()
    runner = TensorRtRunner(ENGINE, fake_module("tensorrt"), mode="graph", gpu=gpu)
    prepared = runner.prepare(random_inputs(runner, 4, np.random.default_rng(0)))
    for _ in range(3):
        prepared()
    assert (gpu.captured, gpu.replayed) == (1, 3)
    assert np.all(np.isfinite(prepared.outputs()["mean"]))


def test_two_engines_are_compared_with_device_time_beside_host_latency() -> None:
    trt = fake_module("tensorrt")
    runners = [TensorRtRunner(ENGINE, trt, gpu=CpuGpu()) for _ in range(2)]
    (got,) = compare_latency(runners, batch=2, monitor=lambda device: None)
    assert len(trt.seen) == 3  # the control deserializes again
    assert got.device_time is not None
    assert got.device_time.ms == pytest.approx(1e-3)
    assert got.backend == "tensorrt"
    assert got.settings["library"] == "tensorrt 11.4"


def test_a_batch_outside_of_all_profiles_is_refused() -> None:
    runner = TensorRtRunner(ENGINE, fake_module("tensorrt"), gpu=CpuGpu())
    with pytest.raises(
        ConfigError, match="takes batches of 1 to 1, 1 to 16, got --batch 17; export it"
    ):
        runner.prepare(random_inputs(runner, 17, np.random.default_rng(0)))
    assert taken_batches(runner, (1, 8, 64)) == (1, 8)
    assert taken_batches(runner, (32, 64)) == (1,)


@pytest.mark.parametrize(
    "inputs",
    [{}, {"image": np.zeros((2, 3, 4, 5), np.float32)}, {"image": np.zeros((2, 3, 4, 4))}],
    ids=["none", "wrong side", "float64"],
)
def test_inputs_that_do_not_fit_are_refused(inputs: dict[str, Any]) -> None:
    runner = TensorRtRunner(ENGINE, fake_module("tensorrt"), gpu=CpuGpu())
    with pytest.raises(ConfigError, match=r"takes the inputs \['image'\], got|must be float32 of"):
        runner.run(inputs)
    runner.close()
    with pytest.raises(ConfigError, match="closed"):
        runner.run(inputs)


def test_an_engine_that_is_not_accepted_is_one_line_with_the_log() -> None:
    broken = dataclasses.replace(ENGINE, data=b"junk")
    with pytest.raises(BundleError, match="cannot load the engine of net: magic tag") as caught:
        TensorRtRunner(broken, fake_module("tensorrt"), gpu=CpuGpu())
    assert "\n" not in str(caught.value)


def test_an_engine_for_other_gpus_is_refused_before_it_is_deserialized() -> None:
    trt = fake_module("tensorrt_rtx")
    trt.validity = trt.EngineValidity.INVALID
    with pytest.raises(BackendUnavailable, match="does not run on this GPU"):
        TensorRtRunner(RTX, trt, gpu=CpuGpu())
    assert trt.seen == []


@pytest.fixture
def engine_bundle(bundle: Path) -> Path:
    """The bundle of the other tests with an engine in it."""
    (bundle / "model.tensorrt.engine").write_bytes(engine_text())
    manifest = read_manifest(bundle)
    info = EngineInfo(
        file="model.tensorrt.engine", runtime="tensorrt", version="11.4", runs_on="a card",
        compute_capabilities=("9.0",), profiles=PROFILES, inputs=manifest.inputs,
        outputs=manifest.outputs,
    )  # fmt: skip
    files = {**manifest.files, info.file: FileEntry.of(engine_text())}
    write_manifest(dataclasses.replace(manifest, engine=info, files=files), bundle)
    return bundle


def test_the_verified_bytes_of_a_bundle_go_to_the_deserializer(
    engine_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = fake_module("tensorrt")
    monkeypatch.setattr(loading, "import_engine_runtime", lambda name: trt)
    monkeypatch.setattr(loading, "require_gpu", lambda otherwise: None)
    monkeypatch.setattr("polarprune_deploy.backends.cuda_streams.Gpu", CpuGpu)
    runner = loading.load_runner(engine_bundle, "tensorrt", "cuda")
    assert trt.seen == [engine_text()]
    assert (runner.name, runner.backend, runner.precision) == (
        "two-convolutions", "tensorrt", "fp32",
    )  # fmt: skip
    engine = engine_bundle / "model.tensorrt.engine"
    engine.write_bytes(engine.read_bytes()[:-1] + b" ")
    trt.seen.clear()
    with pytest.raises(BundleError, match="was changed after export"):
        loading.load_runner(engine_bundle, "tensorrt", "cuda")
    assert trt.seen == []


def test_a_bundle_without_the_right_engine_says_what_to_export(
    engine_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="holds an engine for tensorrt, not one for tensorrt_rtx"):
        read_engine(engine_bundle, "tensorrt_rtx")
    with pytest.raises(BundleError, match="is no bundle, and engines come in bundles"):
        read_engine(tmp_path, "tensorrt")


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("engine", [ENGINE, RTX], ids=["tensorrt", "tensorrt_rtx"])
def test_other_inputs_are_copied_in_and_nobody_elses_array_is_written(
    engine: EngineBytes, mode: str
) -> None:
    runner = TensorRtRunner(engine, fake_module(engine.runtime), mode=mode, gpu=CpuGpu())
    generator = np.random.default_rng(0)
    first, second = (random_inputs(runner, 3, generator) for _ in range(2))
    given = first["image"].copy()
    prepared = runner.prepare(first)
    assert isinstance(prepared, RefillableRun)
    for inputs in (second, {"image": given}, second):
        prepared.refill(inputs)
        prepared()
        expected = 2.0 * inputs["image"].mean((1, 2, 3))[:, None]
        np.testing.assert_allclose(prepared.outputs()["mean"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first["image"], given)


def test_an_engine_that_does_not_run_shows_the_error_of_the_device_where_that_is_the_reason() -> (
    None
):
    class Broken(CpuGpu):
        failed = False

        def make_stream(self) -> Any:
            return types.SimpleNamespace(synchronize=self.synchronize)

        def synchronize(self) -> None:
            if self.failed:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

    trt, gpu = fake_module("tensorrt"), Broken()
    runner = TensorRtRunner(ENGINE, trt, gpu=gpu)
    prepared = runner.prepare(random_inputs(runner, 2, np.random.default_rng(0)))
    trt.engines[0].contexts[0].execute_async_v3 = lambda stream: False
    with pytest.raises(Refused, match="the engine did not run"):
        prepared()
    gpu.failed = True
    with pytest.raises(RuntimeError, match="illegal memory access"):
        prepared()
