"""Batches filled up to sizes that a runner takes: no row of the filling is ever seen outside."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_engine import CpuGpu, engine_text, fake_module
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from polarprune.errors import ConfigError
from polarprune.manifest import BatchProfile, TensorSpec
from polarprune_deploy import load_runner
from polarprune_deploy.backends.network_bytes import EngineBytes, NetworkBytes
from polarprune_deploy.backends.runner_tensorrt import TensorRtRunner
from polarprune_deploy.backends.runner_torch import TorchRunner
from polarprune_deploy.backends.runners import Array, Runner
from polarprune_deploy.serving.batcher import Named
from polarprune_deploy.serving.bucketed_engine import MOST_PREPARED, BucketedEngine

ANY = BatchProfile(1, 4, 16)


class StandInRun:
    """Buffers of one shape. What it computes of a row tells the row's sum and nothing else."""

    def __init__(self, runner: "StandInRunner", inputs: Mapping[str, Array]) -> None:
        self._runner = runner
        self._held = {name: array.copy() for name, array in inputs.items()}
        self._output = np.full((len(self._held["image"]), 1), np.nan, np.float32)

    def refill(self, inputs: Mapping[str, Array]) -> None:
        for name, array in inputs.items():
            assert array.shape == self._held[name].shape
            self._held[name][:] = array

    def __call__(self) -> None:
        images = self._held["image"]
        self._runner.ran.append(images.copy())
        self._output[:] = images.reshape(len(images), -1).sum(1, keepdims=True)

    def outputs(self) -> dict[str, Array]:
        return {"sum": self._output}


class StandInRunner:
    """A device that takes some batch sizes only, and whose buffers stay where they are."""

    name, backend, device, precision, sha256, load_ms = (
        "stand-in",
        "stand-in",
        "cuda",
        "fp32",
        "",
        1.0,
    )
    settings: Mapping[str, str | int | float] = {}

    def __init__(self) -> None:
        self.inputs = (TensorSpec("image", "float32", (-1, 1, -1, -1)),)
        self.ran: list[Array] = []
        self.prepared = self.closed = 0

    def prepare(self, inputs: Mapping[str, Array]) -> StandInRun:
        self.prepared += 1
        return StandInRun(self, inputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("prepared runs alone")

    def twin(self) -> "StandInRunner":
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1


class ProfiledRunner(StandInRunner):
    """The same, as an engine of TensorRT is."""

    def __init__(self, profiles: Sequence[BatchProfile]) -> None:
        super().__init__()
        self.profiles = profiles


def images(rows: int, start: int = 1, side: int = 2, channels: int = 1) -> Array:
    """Images that no two of are alike; a frozen view, as of a request's body."""
    count = rows * channels * side * side
    values = (start + np.arange(count, dtype=np.float32)).reshape(rows, channels, side, side)
    return np.frombuffer(values.tobytes(), np.float32).reshape(values.shape)


def ask(engine: BucketedEngine, name: str, parts: Sequence[Array]) -> Named:
    rows = sum(map(len, parts))
    return engine.run(engine.assemble([{name: part} for part in parts], rows), rows)


def sums(array: Array) -> Array:
    return array.reshape(len(array), -1).sum(1, keepdims=True)


@st.composite
def profiles(draw: st.DrawFn) -> list[BatchProfile]:
    return [
        BatchProfile(*sorted(draw(st.lists(st.integers(1, 70), min_size=3, max_size=3))))
        for _ in range(draw(st.integers(1, 3)))
    ]


@given(profiles(), profiles())
def test_every_size_is_one_that_a_profile_takes_and_the_largest_is_there(
    taken: list[BatchProfile], batch: list[BatchProfile]
) -> None:
    engine = BucketedEngine(ProfiledRunner(taken), batch[0])
    allowed = {n for n in range(1, 71) if any(p.min <= n <= p.max for p in taken)}
    assert set(engine.sizes) <= allowed
    assert list(engine.sizes) == sorted(set(engine.sizes))
    assert engine.most == max(allowed)
    powers = {2**power for power in range(7)}
    assert powers & allowed <= set(engine.sizes)
    for rows in range(1, engine.most + 1):
        assert engine.bucket(rows) == min(size for size in engine.sizes if size >= rows)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_rows_come_back_in_order_and_the_filling_is_zero(counts: list[int]) -> None:
    runner = ProfiledRunner([BatchProfile(1, 8, 24)])
    engine = BucketedEngine(runner, ANY)
    # The first batch leaves something in every buffer that could leak.
    ask(engine, "image", [images(engine.bucket(sum(counts)), start=1000)])
    parts = [images(count, start=10 * index) for index, count in enumerate(counts)]
    outputs = ask(engine, "image", parts)
    rows = sum(counts)
    assert outputs["sum"].shape == (rows, 1)
    np.testing.assert_array_equal(outputs["sum"], sums(np.concatenate(parts)))
    assert not runner.ran[-1][rows:].any()


def test_a_later_batch_does_not_change_an_earlier_answer() -> None:
    engine = BucketedEngine(StandInRunner(), ANY)
    first = ask(engine, "image", [images(4)])["sum"]
    kept = first.copy()
    ask(engine, "image", [images(4, start=77)])
    np.testing.assert_array_equal(first, kept)


def test_each_shape_is_prepared_once_and_those_used_least_lately_are_given_up() -> None:
    runner = StandInRunner()
    engine = BucketedEngine(runner, ANY)
    for _ in range(2):
        for rows in (1, 2, 3, 4):
            ask(engine, "image", [images(rows)])
    assert runner.prepared == 3, "three and four images share one"
    sides = range(3, 3 + MOST_PREPARED)
    for side in sides:
        ask(engine, "image", [images(1, side=side)])
        ask(engine, "image", [images(1, side=2)])  # used all the time
    assert runner.prepared == 3 + len(sides)
    assert len(engine._prepared) == MOST_PREPARED
    ask(engine, "image", [images(1, side=sides[-1])])
    ask(engine, "image", [images(1, side=2)])
    assert runner.prepared == 3 + len(sides)
    ask(engine, "image", [images(4, side=2)])
    assert runner.prepared == 4 + len(sides)


def test_closing_frees_the_runner_and_what_it_prepared() -> None:
    runner = StandInRunner()
    engine = BucketedEngine(runner, ANY)
    ask(engine, "image", [images(1)])
    engine.close()
    assert (runner.closed, engine._prepared) == (1, {})


def test_an_output_that_is_not_one_an_image_is_refused() -> None:
    class Joined(StandInRun):
        def outputs(self) -> dict[str, Array]:
            return {"sum": np.zeros((1, 1), np.float32)}

    runner = StandInRunner()
    runner.prepare = lambda inputs: Joined(runner, inputs)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"output sum has shape \[1, 1\] for 4 images"):
        ask(BucketedEngine(runner, ANY), "image", [images(3)])


def test_a_run_that_takes_no_new_inputs_is_refused() -> None:
    class Fixed:
        def __call__(self) -> None: ...

        def outputs(self) -> dict[str, Array]:
            return {}

    runner = StandInRunner()
    runner.prepare = lambda inputs: Fixed()  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ConfigError, match="stand-in cannot be given new inputs"):
        ask(BucketedEngine(runner, ANY), "image", [images(1)])


def head(batch: int | str) -> bytes:
    """Two numbers of each image of 1 x 2 x 2, as an ONNX file."""
    weight = np.array([[1, 10, 100, 1000], [-1, 1, -1, 1]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight"], ["out"], transB=1),
        ],
        "head",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 2, 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 2])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def onnxruntime(batch: int | str) -> Callable[[Path], Runner]:
    def make(folder: Path) -> Runner:
        (folder / "head.onnx").write_bytes(head(batch))
        return load_runner(folder / "head.onnx", threads=1)

    return make


def torch(folder: Path) -> Runner:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    net[1].weight.data[:] = net[1].weight.new_tensor([[1, 10, 100, 1000], [-1, 1, -1, 1]])
    return TorchRunner(net, (1, 2, 2), name="head", threads=1)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (onnxruntime("batch"), (1, 2, 4, 8, 16)),
        (onnxruntime(4), (4,)),
        (torch, (1, 2, 4, 8, 16)),
    ],
    ids=["any batch", "batches of four", "torch"],
)
def test_a_real_runner_gives_each_image_what_it_gives_it_alone(
    make: Callable[[Path], Runner], sizes: tuple[int, ...], tmp_path: Path
) -> None:
    runner = make(tmp_path)
    engine = BucketedEngine(runner, ANY)
    assert engine.sizes == sizes
    assert engine.exact == (sizes != (4,) and runner.backend == "onnxruntime")
    name = runner.inputs[0].name
    weight = np.array([[1, 10, 100, 1000], [-1, 1, -1, 1]], np.float32)
    held: list[tuple[Array, Array]] = []
    for start in range(4):
        for counts in ((1,), (1, 2), (4,), (2, 1, 1)):
            if sum(counts) > engine.most:
                continue
            parts = [images(count, start=100 * start + 7 * i) for i, count in enumerate(counts)]
            (found,) = ask(engine, name, parts).values()
            expected = np.concatenate(parts).reshape(-1, 4).astype(np.float64) @ weight.T
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            held += [(found, found.copy())]
    for found, then in held:
        np.testing.assert_array_equal(found, then)
    engine.close()


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_is_given_sizes_of_its_profiles(runtime: str, mode: str) -> None:
    taken = (BatchProfile(1, 1, 1), BatchProfile(4, 6, 12))
    trt, gpu = fake_module(runtime), CpuGpu()
    onnx_bytes = NetworkBytes("net", b"", "1" * 64, "fp32")
    text = engine_text(profiles=[[p.min, p.opt, p.max] for p in taken])
    content = EngineBytes("net", text, "0" * 64, "fp32", runtime, taken, onnx_bytes)
    engine = BucketedEngine(
        TensorRtRunner(content, trt, mode=mode, gpu=gpu), BatchProfile(1, 6, 12)
    )
    assert engine.sizes == (1, 4, 6, 8, 12)
    for counts in ((1,), (1, 1), (5,), (3, 3), (12,), (1,)):
        shape = [images(count, start=11 * i, side=4, channels=3) for i, count in enumerate(counts)]
        found = ask(engine, "image", shape)["mean"]
        expected = 2 * np.concatenate(shape).mean((1, 2, 3), dtype=np.float64)
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)
    contexts = trt.engines[0].contexts
    assert [context.shape[0] for context in contexts] == [1, 4, 6, 12], "one for each size asked"
    assert gpu.captured == (4 if (runtime, mode) == ("tensorrt", "graph") else 0)
