"""A device on a virtual clock, and small real ONNX files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from deployed_bundles import convolution, engine_info, write_bundle_of
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from small_bundles import write_small_bundle

from polarprune.manifest import BatchProfile, FileEntry, Manifest, TensorSpec, write_manifest
from polarprune_deploy.comparisons import Comparison
from polarprune_deploy.latency import compare_latency

Array = NDArray[np.float32]


@dataclass
class VirtualDevice:
    """Time passes only while a network runs: cost x drift(time) x noise, sometimes an outlier."""

    generator: np.random.Generator
    noise: float = 0.02
    outlier_share: float = 0.0
    outlier_factor: float = 8.0
    drift: Callable[[float], float] = lambda seconds: 1.0
    now_ns: float = 0.0
    _factors: list[float] = field(default_factory=list)

    def clock(self) -> int:
        return round(self.now_ns)

    def spend(self, cost_ms: float) -> None:
        if not self._factors:  # drawn in bulk: one study takes some hundred
            factors = np.exp(self.noise * self.generator.standard_normal(512))
            outliers = self.generator.random(512) < self.outlier_share
            self._factors = np.where(outliers, self.outlier_factor, factors).tolist()
        self.now_ns += cost_ms * 1e6 * self.drift(self.now_ns / 1e9) * self._factors.pop()


@dataclass
class VirtualRunner:
    """A network of known cost; `twin_cost_ms` differs only where the control is to break."""

    device_model: VirtualDevice
    cost_ms: float
    twin_cost_ms: float | None = None
    output: float = 1.0
    twin_output: float | None = None
    name: str = "virtual"
    precision: str = "fp32"
    backend: str = "virtual"
    device: str = "cpu"
    inputs: tuple[TensorSpec, ...] = (TensorSpec("input", "float32", (-1, 1)),)
    sha256: str = "0" * 64
    load_ms: float = 1.0
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
    runs: int = 0

    def __call__(self) -> None:
        self.runs += 1
        self.device_model.spend(self.cost_ms)

    def outputs(self) -> dict[str, Array]:
        return {"logits": np.full((1, 2), self.output, np.float32)}

    def prepare(self, inputs: Mapping[str, Array]) -> "VirtualRunner":
        self()  # as real ones do, to learn the shapes
        return self

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self()
        return self.outputs()

    def twin(self) -> "VirtualRunner":
        return VirtualRunner(
            self.device_model,
            self.cost_ms if self.twin_cost_ms is None else self.twin_cost_ms,
            output=self.output if self.twin_output is None else self.twin_output,
        )

    def close(self) -> None:
        pass


@dataclass
class VirtualWatch:
    """Notes the device's clock at each mark; what lies between two is what ran there."""

    runner: "VirtualGpuRunner"
    marks: dict[tuple[str, int], float] = field(default_factory=dict)

    def start(self, run: int) -> None:
        self.marks["start", run] = self.runner.device_ns

    def stop(self, run: int) -> None:
        self.marks["stop", run] = self.runner.device_ns

    def elapsed_ns(self) -> list[int]:
        runs = len(self.marks) // 2
        return [round(self.marks["stop", i] - self.marks["start", i]) for i in range(runs)]


@dataclass
class VirtualGpuRunner(VirtualRunner):
    """Queues in no time to speak of, computes for `cost_ms`, and is waited for `overhead_ms`."""

    overhead_ms: float = 3.0
    enqueue_ms: float = 0.1
    stream: str = "the only one"
    device_ns: float = 0.0

    def submit(self) -> None:
        self.device_model.spend(self.enqueue_ms)
        before = self.device_model.now_ns
        self.device_model.spend(self.cost_ms)
        self.device_ns += self.device_model.now_ns - before
        self.device_model.now_ns = before  # the host goes on meanwhile

    def __call__(self) -> None:
        self.runs += 1
        self.device_model.spend(self.enqueue_ms + self.cost_ms + self.overhead_ms)

    def stopwatch(self, runs: int) -> VirtualWatch:
        return VirtualWatch(self)

    def twin(self) -> "VirtualGpuRunner":
        return VirtualGpuRunner(self.device_model, self.cost_ms)


@pytest.fixture
def make_gpu_runner() -> type[VirtualGpuRunner]:
    return VirtualGpuRunner


@pytest.fixture
def make_device() -> Callable[..., VirtualDevice]:
    def make(seed: int, **options: object) -> VirtualDevice:
        return VirtualDevice(np.random.default_rng(seed), **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_runner() -> type[VirtualRunner]:
    return VirtualRunner


@pytest.fixture
def virtual_comparison() -> Callable[..., Comparison]:
    """Compare on one device; its clock is the only one."""

    def compare(against: VirtualRunner, candidate: VirtualRunner, **options: object) -> Comparison:
        options = {"batch": 1, "stolen": lambda: 0.0, **options}
        clock = against.device_model.clock
        (comparison,) = compare_latency([against, candidate], clock=clock, **options)  # type: ignore[arg-type]
        return comparison

    return compare


def write_convolutions(
    path: Path, layers: int, *, channels: int = 16, batch: str | int = "batch", scale: float = 1.0
) -> Path:
    """Convolutions in a row, then an average: the work is proportional to `layers`."""
    generator = np.random.default_rng(0)
    nodes, weights, previous, width = [], [], "input", 3
    for layer in range(layers):
        deviation = scale * np.sqrt(2 / (9 * width))
        weight = deviation * generator.standard_normal((channels, width, 3, 3))
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"weight_{layer}"))
        nodes.append(
            helper.make_node("Conv", [previous, f"weight_{layer}"], [f"conv_{layer}"], pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"conv_{layer}"], [f"relu_{layer}"]))
        previous, width = f"relu_{layer}", channels
    nodes.append(helper.make_node("ReduceMean", [previous, "axes"], ["logits"], keepdims=0))
    weights.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, channels])
    graph = helper.make_graph(nodes, "convolutions", [image], [logits], weights)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture
def convolutions(tmp_path: Path) -> Callable[..., Path]:
    def make(layers: int, **options: object) -> Path:
        stem = "-".join(str(part) for part in (layers, *options.values()))
        return write_convolutions(tmp_path / f"net-{stem}.onnx", layers, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A bundle with an engine of TensorRT-RTX, which is no plan."""
    return write_small_bundle(tmp_path / "small")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A bundle with an engine of TensorRT."""
    return write_bundle_of(tmp_path / "plan", convolution(), engine=engine_info())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    content = write_convolutions(folder / "model.onnx", 2).read_bytes()
    manifest = Manifest(
        name="two-convolutions",
        precision="fp32",
        base={},
        inputs=(TensorSpec("input", "float32", (-1, 3, 32, 32)),),
        outputs=(TensorSpec("logits", "float32", (-1, 16)),),
        preprocessing=None,
        classes=(),
        batch=BatchProfile(1, 8, 64),
        engine=None,
        certificate=(),
        real_images="none",
        accuracy=None,
        tools={},
        files={"model.onnx": FileEntry.of(content)},
    )
    write_manifest(manifest, folder)
    return folder
