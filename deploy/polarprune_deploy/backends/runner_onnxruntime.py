"""ONNX Runtime behind the runner protocol.

A provider that was not asked for never runs: sessions get exactly one, fallback to the CPU is
switched off, and what the session reports is compared with what was wanted.
"""

import importlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from polarprune.errors import BackendUnavailable, BundleError, ConfigError
from polarprune.manifest import TensorSpec
from polarprune_deploy.backends.input_making import check_inputs
from polarprune_deploy.backends.network_bytes import NetworkBytes
from polarprune_deploy.backends.runners import Array
from polarprune_deploy.environment import usable_cpus

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

ERRORS_ONLY = 3
"""onnxruntime's log severity: it writes warnings straight to stderr, which belongs to people."""


class OnnxRuntimeRunner:
    """One onnxruntime session over bytes that were verified before."""

    backend = "onnxruntime"

    def __init__(
        self,
        network: NetworkBytes,
        *,
        device: str = "cpu",
        threads: int | None = None,
        spinning: bool = True,
    ) -> None:
        """Load.

        Args:
            spinning: whether workers wait for each other busily inside a run: faster by itself,
                slower where others want the cores too.
        """
        ort = _onnxruntime(device)
        self._network = network
        self._ort = ort
        self.name = network.name
        self.sha256 = network.sha256
        self.device = device
        self.settings: dict[str, str | int | float] = {
            "provider": PROVIDERS[device],
            "intra_op_threads": usable_cpus() if threads is None else threads,
            # Not after a run: the next network in an interleaved round would otherwise share its
            # cores with them.
            "spinning": "inside a run only" if spinning else "never",
        }
        self.precision = network.precision or _stated_precision(network.data)
        start = time.perf_counter_ns()
        self._session: Any = self._open_session()
        self.load_ms = (time.perf_counter_ns() - start) / 1e6
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.output_specs = tuple(_spec(node) for node in self._session.get_outputs())

    @property
    def network(self) -> NetworkBytes:
        """The bytes that were loaded and what is known about them."""
        return self._network

    def _session_options(self) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.settings["intra_op_threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        spins = "0" if self.settings["spinning"] == "never" else "1"
        options.add_session_config_entry("session.intra_op.allow_spinning", spins)
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.device != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return options

    def _open_session(self) -> Any:
        options = self._session_options()
        wanted = PROVIDERS[self.device]
        try:
            session = self._ort.InferenceSession(
                self._network.data, sess_options=options, providers=[wanted]
            )
        except Exception as error:  # its exceptions share no base class but this one
            if self.device == "cpu" and self.precision == "bf16":
                raise BackendUnavailable(
                    f"{self.name} is in bf16, for which onnxruntime has no operators on a CPU; "
                    "run it on a GPU, or export another precision"
                ) from error
            reason = " ".join(str(error).split())[:200]
            raise BundleError(
                f"onnxruntime cannot load {self.name}: {reason}; export it again"
            ) from error
        if session.get_providers()[0] != wanted:
            raise BackendUnavailable(
                f"onnxruntime fell back to {session.get_providers()[0]} instead of {wanted}; "
                "install polarprune[gpu] and a matching CUDA"
            )
        return session

    def prepare(self, inputs: Mapping[str, Array]) -> "BoundRun":
        """Bind the inputs and poisoned outputs, so that a call moves no data of its own."""
        check_inputs(self.name, self.inputs, inputs)
        return BoundRun(self._ort, self._open(), self.device, dict(inputs))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, on the host."""
        check_inputs(self.name, self.inputs, inputs)
        names = [spec.name for spec in self.output_specs]
        return dict(zip(names, self._open().run(names, dict(inputs)), strict=True))

    def twin(self) -> "OnnxRuntimeRunner":
        """A second session over the same bytes, with threads of its own."""
        return OnnxRuntimeRunner(
            self._network,
            device=self.device,
            threads=int(self.settings["intra_op_threads"]),
            spinning=self.settings["spinning"] != "never",
        )

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self._session = None

    def _open(self) -> Any:
        if self._session is None:
            raise ConfigError(f"the runner of {self.name} is closed; load it again")
        return self._session


class BoundRun:
    """Device buffers for one shape of input, bound once."""

    def __init__(self, ort: Any, session: Any, device: str, inputs: dict[str, Array]):
        self._session = session
        self._run = session.run_with_iobinding
        self._binding = session.io_binding()
        self._synchronize = None if device == "cpu" else self._binding.synchronize_outputs
        self._names = [node.name for node in session.get_outputs()]
        # Kept: on the CPU the session reads these very arrays. Copied: a refill writes into them.
        self._inputs = {name: np.array(array, order="C") for name, array in inputs.items()}
        self._input_values = {
            name: ort.OrtValue.ortvalue_from_numpy(array, device, 0)
            for name, array in self._inputs.items()
        }
        for name, value in self._input_values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._outputs = []
        # One plain run tells the output shapes, which the model need not state.
        for name, example in zip(self._names, session.run(self._names, self._inputs), strict=True):
            poison = np.full_like(example, np.nan if example.dtype.kind == "f" else 0)
            value = ort.OrtValue.ortvalue_from_numpy(poison, device, 0)
            self._binding.bind_ortvalue_output(name, value)
            self._outputs.append((poison, value))

    def __call__(self) -> None:
        """Run once, to complete outputs."""
        self._run(self._binding)
        if self._synchronize is not None:
            self._synchronize()

    def refill(self, inputs: Mapping[str, Array]) -> None:
        """Other inputs of the same shapes."""
        for name, value in self._input_values.items():
            value.update_inplace(np.ascontiguousarray(inputs[name]))

    def outputs(self) -> dict[str, Array]:
        """The outputs of the last call, on the host; NaN where it wrote nothing."""
        values = (value.numpy() for _, value in self._outputs)
        return dict(zip(self._names, values, strict=True))


def _onnxruntime(device: str) -> Any:
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as error:
        extra = "cpu" if device == "cpu" else "gpu"
        raise BackendUnavailable(
            f"onnxruntime is not installed; run: pip install 'polarprune[{extra}]'"
        ) from error
    if PROVIDERS[device] not in ort.get_available_providers():
        raise BackendUnavailable(
            f"this onnxruntime has no {PROVIDERS[device]} for --device {device}; "
            "uninstall onnxruntime and run: pip install 'polarprune[gpu]'"
        )
    return ort


def _spec(node: Any) -> TensorSpec:
    if node.type not in DTYPES:
        raise ConfigError(f"tensor {node.name} is {node.type}, which this runner cannot feed")
    shape = tuple(side if isinstance(side, int) else -1 for side in node.shape)
    return TensorSpec(name=node.name, dtype=DTYPES[node.type], shape=shape)


def _stated_precision(data: bytes) -> str:
    """What a plain ONNX file computes in: int8 if it quantizes, else the type of most weights."""
    onnx: Any = importlib.import_module("onnx")
    graph = onnx.load_from_string(data).graph
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return "int8"
    kinds = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.BFLOAT16: "bf16",
        onnx.TensorProto.DOUBLE: "fp64",
    }
    elements = dict.fromkeys(kinds.values(), 0)
    for weight in graph.initializer:
        if weight.data_type in kinds:
            elements[kinds[weight.data_type]] += int(np.prod(weight.dims))
    return max(elements, key=lambda kind: elements[kind])
