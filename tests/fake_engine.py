"""A TensorRT that runs on the CPU: the names that a runner uses, and their order of use.

An "engine" is a JSON text. A context refuses what TensorRT refuses: shapes outside the profile,
runs before every tensor has an address. It computes y = mean of each image, times the engine's
factor, by reading and writing the addresses it was given.
"""

import ctypes
import json
import types
from enum import IntEnum
from typing import Any

import numpy as np
import torch

SHAPE = (3, 4, 4)


def engine_text(profiles: Any = ((1, 1, 1), (1, 8, 16))) -> bytes:
    return json.dumps({"factor": 2.0, "profiles": profiles}).encode()


class Severity(IntEnum):
    ERROR = 1
    WARNING = 2


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    FP8 = 2


class TensorIOMode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class EngineValidity(IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class CudaGraphStrategy(IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Specialization(IntEnum):
    LAZY = 0
    EAGER = 1


class Logger:
    Severity = Severity


class Context:
    def __init__(self, engine: "Engine", config: Any) -> None:
        self.engine, self.config = engine, config
        self.addresses: dict[str, int] = {}
        self.profile, self.shape = -1, None
        self.runs: list[int] = []

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return 0 <= index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profiles[self.profile]
        assert name == "image"
        assert low <= shape[0] <= high, "outside the profile"
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [] if self.shape else ["image"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None
        return (self.shape[0], 1) if name == "mean" else self.shape

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return name in ("image", "mean")

    def execute_async_v3(self, stream: int) -> bool:
        assert set(self.addresses) == {"image", "mean"}
        assert self.shape is not None
        self.runs.append(stream)
        count = int(np.prod(self.shape))
        image = (ctypes.c_float * count).from_address(self.addresses["image"])
        images = np.frombuffer(image, np.float32).reshape(self.shape)
        mean = (ctypes.c_float * self.shape[0]).from_address(self.addresses["mean"])
        np.frombuffer(mean, np.float32)[:] = images.mean((1, 2, 3)) * self.engine.factor
        return True


class Engine:
    num_io_tensors = 2

    def __init__(self, content: bytes) -> None:
        document = json.loads(content)
        self.factor, self.profiles = document["factor"], document["profiles"]
        self.contexts: list[Context] = []

    def get_tensor_name(self, index: int) -> str:
        return ("image", "mean")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *SHAPE) if name == "image" else (-1, 1)

    def create_runtime_config(self) -> Any:
        return types.SimpleNamespace()

    def create_execution_context(self, config: Any = None) -> Context:
        self.contexts.append(Context(self, config))
        return self.contexts[-1]


def fake_module(name: str) -> Any:
    """`tensorrt` or `tensorrt_rtx`; `module.engines` and `module.seen` tell what was asked."""
    module: Any = types.ModuleType(name)
    module.__version__ = "11.4"
    module.seen, module.engines = [], []
    module.ILogger, module.DataType, module.TensorIOMode = Logger, DataType, TensorIOMode
    module.validity = EngineValidity.VALID

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            module.seen.append(content)
            if not content.startswith(b"{"):
                self._logger.log(Severity.ERROR, "magic tag does not match")
                return None
            module.engines.append(Engine(content))
            return module.engines[-1]  # type: ignore[no-any-return]

    if name == "tensorrt_rtx":
        module.EngineValidity, module.CudaGraphStrategy = EngineValidity, CudaGraphStrategy
        module.DynamicShapesKernelSpecializationStrategy = Specialization
        Runtime.get_engine_validity = lambda self, content: (module.validity, 0)  # type: ignore[attr-defined]
    module.Runtime = Runtime
    return module


class CpuGpu:
    """Stands in for `cuda_streams.Gpu`: memory of the CPU, a stream that is done at once."""

    device = "cpu"

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0

    def make_stream(self) -> Any:
        return types.SimpleNamespace(synchronize=lambda: None)

    def handle(self, stream: Any) -> int:
        return 77

    def stopwatch(self, stream: Any, runs: int) -> Any:
        marks: list[int] = []
        return types.SimpleNamespace(
            start=marks.append, stop=lambda run: None, elapsed_ns=lambda: [1000] * len(marks)
        )

    def capture(self, work: Any, stream: Any) -> Any:
        self.captured += 1
        return work

    def replay(self, graph: Any, stream: Any) -> None:
        self.replayed += 1
        graph()

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()
