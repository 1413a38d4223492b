"""TensorRT and TensorRT-RTX as one backend: an engine from verified bytes, buffers by torch.

The two packages share an interface apart from names that come and go, so nothing asks for a
version: what a package has is asked of it (`polarprune_export.engine_runtime` for the building).
An engine is executable code: `engine_host_code_allowed` keeps its default, False.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polarprune.errors import BackendUnavailable, BundleError, ConfigError, Refused
from polarprune.manifest import TensorSpec
from polarprune_deploy.backends.input_making import check_inputs
from polarprune_deploy.backends.network_bytes import EngineBytes
from polarprune_deploy.backends.runners import Array, Stopwatch

# Names of tensorrt.DataType to those of torch and numpy.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class TensorRtRunner:
    """One deserialized engine."""

    device = "cuda"

    def __init__(
        self, engine: EngineBytes, trt: Any, *, mode: str = "eager", gpu: Any = None
    ) -> None:
        """Deserialize.

        Args:
            engine: verified bytes.
            trt: the module that built them, `tensorrt` or `tensorrt_rtx`.
            mode: "eager" queues the engine's kernels in every run, "graph" one CUDA graph.
            gpu: stands in for `cuda_streams.Gpu` in tests.

        Raises:
            BackendUnavailable: the engine was not built for this GPU.
            BundleError: the library does not accept it.
        """
        if gpu is None:
            from polarprune_deploy.backends.cuda_streams import Gpu

            gpu = Gpu()
        self._bytes, self._trt, self._gpu, self._mode = engine, trt, gpu, mode
        self.name, self.sha256, self.precision = engine.name, engine.sha256, engine.precision
        self.backend, self.profiles = engine.runtime, engine.profiles
        self.settings: dict[str, str | int | float] = {
            "mode": mode,
            "library": f"{engine.runtime} {trt.__version__}",
        }
        start = time.perf_counter_ns()
        self._engine: Any = self._deserialize()
        self.load_ms = (time.perf_counter_ns() - start) / 1e6
        self.inputs = self._specs(trt.TensorIOMode.INPUT)
        self.output_specs = self._specs(trt.TensorIOMode.OUTPUT)

    def _deserialize(self) -> Any:
        from polarprune_export.engine_runtime import collecting_logger, quote_log

        trt, data = self._trt, self._bytes.data
        # The runtime and its logger must outlive the engine.
        self._logger, lines = collecting_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        if hasattr(self._runtime, "get_engine_validity"):
            validity, _ = self._runtime.get_engine_validity(data)
            if validity == trt.EngineValidity.INVALID:
                raise BackendUnavailable(
                    f"the engine of {self.name} does not run on this GPU or with this "
                    f"{trt.__name__} {trt.__version__}; export it again here with --format trt "
                    f"({quote_log(lines)})"
                )
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BundleError(
                f"{trt.__name__} {trt.__version__} cannot load the engine of {self.name}: "
                f"{quote_log(lines)}; export it again here with --format trt"
            )
        return engine

    def _specs(self, mode: Any) -> tuple[TensorSpec, ...]:
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        found = []
        for name in names:
            if engine.get_tensor_mode(name) != mode:
                continue
            kind = engine.get_tensor_dtype(name).name
            if kind not in DTYPES:
                raise Refused(f"tensor {name} of {self.name} is {kind}, which cannot be fed")
            shape = tuple(int(side) for side in engine.get_tensor_shape(name))
            found.append(TensorSpec(name, DTYPES[kind], shape))
        return tuple(found)

    def prepare(self, inputs: Mapping[str, Array]) -> "EngineRun":
        """Buffers on the device, bound to a context of their own, for this one batch size.

        Raises:
            ConfigError: inputs that the engine does not take.
        """
        if self._engine is None:
            raise ConfigError(f"the runner of {self.name} is closed; load it again")
        check_inputs(self.name, self.inputs, inputs)
        batch = next(iter(inputs.values())).shape[0]
        context = self._make_context()
        profile = self._profile_for(batch)
        run = EngineRun(self._gpu, context, profile, self.inputs, self.output_specs, inputs)
        # TensorRT-RTX captures by itself, inside of its own strategy.
        if self._mode == "graph" and self.backend == "tensorrt":
            run.capture()
        return run

    def _make_context(self) -> Any:
        trt, engine = self._trt, self._engine
        if self.backend != "tensorrt_rtx":
            return engine.create_execution_context()
        config = engine.create_runtime_config()
        # Its default compiles in the background: early timings would be those of other kernels.
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        strategy = trt.CudaGraphStrategy
        config.cuda_graph_strategy = (
            strategy.WHOLE_GRAPH_CAPTURE if self._mode == "graph" else strategy.DISABLED
        )
        return engine.create_execution_context(config)

    def _profile_for(self, batch: int) -> int:
        """Index of the tightest profile that holds the batch size."""
        fitting = [
            (profile.max - profile.min, index)
            for index, profile in enumerate(self.profiles)
            if profile.min <= batch <= profile.max
        ]
        if not fitting:
            ranges = ", ".join(f"{p.min} to {p.max}" for p in self.profiles)
            raise ConfigError(
                f"the engine of {self.name} takes batches of {ranges}, got {batch}; "
                "export it with another --batch"
            )
        return min(fitting)[1]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, on the host."""
        call = self.prepare(inputs)
        call()
        return call.outputs()

    def expected(self, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
        """What ONNX Runtime computes on the CPU from the ONNX file of the same bundle."""
        from polarprune_deploy.backends.runner_onnxruntime import OnnxRuntimeRunner

        try:
            runner = OnnxRuntimeRunner(self._bytes.onnx)
        except BackendUnavailable:  # not installed, or bf16, which it has no operators for
            return None
        try:
            return runner.run(inputs)
        finally:
            runner.close()

    def twin(self) -> "TensorRtRunner":
        """The same bytes deserialized a second time."""
        return TensorRtRunner(self._bytes, self._trt, mode=self._mode, gpu=self._gpu)

    def close(self) -> None:
        """Free the engine; a second call does nothing."""
        self._engine = None


class EngineRun:
    """One execution context with its buffers, on a stream of its own."""

    def __init__(
        self,
        gpu: Any,
        context: Any,
        profile: int,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        arrays: Mapping[str, Array],
    ) -> None:
        """Bind everything, run once (TensorRT does its shape work lazily), poison the outputs."""
        import torch

        self._torch, self._gpu, self._context = torch, gpu, context
        self.stream = gpu.make_stream()
        self._handle = gpu.handle(self.stream)
        self._graph: Any = None
        if not context.set_optimization_profile_async(profile, self._handle):
            raise ConfigError(f"the engine does not take its own profile {profile}; export again")
        self._buffers = {}
        self._inputs = [spec.name for spec in inputs]
        for spec in inputs:
            tensor = torch.from_numpy(np.ascontiguousarray(arrays[spec.name]))
            self._buffers[spec.name] = gpu.place(tensor.to(getattr(torch, spec.dtype)))
            context.set_input_shape(spec.name, tuple(tensor.shape))
        missing = context.infer_shapes()
        if missing:
            raise ConfigError(f"the engine does not tell the shapes of {', '.join(missing)}")
        self._outputs = [spec.name for spec in outputs]
        for spec in outputs:
            shape = tuple(int(side) for side in context.get_tensor_shape(spec.name))
            dtype = getattr(torch, spec.dtype)
            self._buffers[spec.name] = gpu.place(torch.zeros(shape, dtype=dtype))
        for name, tensor in self._buffers.items():
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise ConfigError(f"the engine does not take a buffer for {name}; export again")
        self()
        for name in self._outputs:
            tensor = self._buffers[name]
            poison = torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 0)
            tensor.copy_(gpu.place(poison))
        gpu.place(torch.zeros(1))  # which waits for the copies above, whatever their stream

    def capture(self) -> None:
        """From now on a run is one replay of a CUDA graph."""
        self._graph = self._gpu.capture(self._queue, self.stream)

    def _queue(self) -> None:
        if not self._context.execute_async_v3(self._handle):
            self.stream.synchronize()  # raises CUDA's own error, where that is the reason
            raise Refused("the engine did not run; its log says why")

    def submit(self) -> None:
        """Queue one run."""
        if self._graph is None:
            self._queue()
        else:
            self._gpu.replay(self._graph, self.stream)

    def __call__(self) -> None:
        """Run once; returns when the outputs are complete."""
        self.submit()
        self.stream.synchronize()

    def stopwatch(self, runs: int) -> Stopwatch:
        """CUDA events on the run's stream."""
        stopwatch: Stopwatch = self._gpu.stopwatch(self.stream, runs)
        return stopwatch

    def refill(self, inputs: Mapping[str, Array]) -> None:
        """Other inputs of the same shapes."""
        for name in self._inputs:
            buffer = self._buffers[name]
            tensor = self._torch.from_numpy(np.ascontiguousarray(inputs[name]))
            buffer.copy_(tensor.to(buffer.dtype))
        self._gpu.place(self._torch.zeros(1))  # which waits for the copies, whatever their stream

    def outputs(self) -> dict[str, Array]:
        """The outputs of the last call, on the host; bfloat16 as float32."""
        found = {}
        for name in self._outputs:
            tensor = self._buffers[name].cpu()
            found[name] = (
                tensor.float() if tensor.dtype == self._torch.bfloat16 else tensor
            ).numpy()
        return found
