"""torch as a backend: a network in memory, on a CPU or GPU, in fp32, fp16 or bf16.

The network is run as it is, channels last and in inference mode: batch norms are not folded, as
they are not in a program that loads it. `graph` replays one captured CUDA graph, `compile` is
Inductor's, `compile-graph` captures what Inductor made.

Threads are the whole process's in torch: the runner that was made last decides.
"""

import copy
import hashlib
import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from polarprune.errors import ConfigError, Refused, first_line
from polarprune.manifest import TensorSpec
from polarprune_deploy.backends.cuda_streams import StreamStopwatch
from polarprune_deploy.backends.runners import Array
from polarprune_deploy.environment import usable_cpus

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
INPUT = "input"

WARM_UP_RUNS = 5  # cuDNN tries its kernels before a capture
# Three loads of two networks at several batch sizes may share one code object, and torch falls
# back to eager beyond its own limit of 8.
RECOMPILE_LIMIT = 256


class TorchRunner:
    """A network on one device in one precision."""

    backend = "torch"

    def __init__(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        *,
        name: str,
        device: str = "cpu",
        mode: str = "eager",
        precision: str = "fp32",
        threads: int | None = None,
    ) -> None:
        """Load a copy; the network given is left as it is, and should stay so.

        Args:
            network: takes one tensor (n, *input_shape); any module, in evaluation mode or not.
            input_shape: of one image, (c, h, w).
            device: "cpu" or "cuda".
            mode: "eager", "graph", "compile" or "compile-graph"; graphs need a GPU.
            precision: "fp32", "fp16" or "bf16": of weights, inputs and activations.
            threads: on a CPU; None takes every CPU the process may use.
        """
        start = time.perf_counter_ns()
        self.name, self.device, self.precision = name, device, precision
        self._mode, self._source = mode, network
        dtype = str(DTYPES[precision]).removeprefix("torch.")
        self.inputs = (TensorSpec(INPUT, dtype, (-1, *input_shape)),)
        self.settings: dict[str, str | int | float] = {"mode": mode, "layout": "channels_last"}
        if device == "cpu":
            count = usable_cpus() if threads is None else threads
            torch.set_num_threads(count)
            self.settings["intra_op_threads"] = count
        else:
            cudnn = torch.backends.cudnn
            self.settings["cudnn"] = (
                f"benchmark {cudnn.benchmark}, deterministic {cudnn.deterministic}, "
                f"tf32 {cudnn.allow_tf32}"
            )
        self.sha256 = _digest(network)
        loaded = _copied(network).to(device=device, dtype=DTYPES[precision])
        self._network: nn.Module | None = loaded.to(memory_format=torch.channels_last)
        self.load_ms = (time.perf_counter_ns() - start) / 1e6

    @property
    def network(self) -> nn.Module:
        """What runs: on the device, in its precision, channels last. Not to be changed."""
        if self._network is None:
            raise ConfigError(f"the runner of {self.name} is closed; load it again")
        return self._network

    def prepare(self, inputs: Mapping[str, Array]) -> "HostRun":
        """The images on the device, compiled and captured where that was asked for."""
        call: Any = self.network
        x = self.placed(inputs)
        if "compile" in self._mode:
            call = torch.compile(call, dynamic=False, fullgraph=True)
        kind = GraphRun if "graph" in self._mode else CudaRun if x.is_cuda else HostRun
        try:
            with _recompiling() if "compile" in self._mode else nullcontext():
                return kind(call, x)
        except Exception as error:  # whatever the network, dynamo, a compiler or CUDA raises
            advice = "; use --mode eager" if self._mode != "eager" else ""
            raise Refused(
                f"torch does not run {self.name} in mode {self._mode} at batch {len(x)} "
                f"({first_line(error)}){advice}"
            ) from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, on the host."""
        call = self.prepare(inputs)
        call()
        return call.outputs()

    def expected(self, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
        """What the network computes on the CPU in float32; None where that is what runs here."""
        if (self.device, self.precision, self._mode) == ("cpu", "fp32", "eager"):
            return None
        plain = _copied(self._source).cpu().float()
        x = torch.from_numpy(inputs[INPUT]).to(DTYPES[self.precision]).float()
        with torch.inference_mode():
            return _named(plain(x))

    def twin(self) -> "TorchRunner":
        """The same network loaded a second time: the A/A control."""
        threads = self.settings.get("intra_op_threads")
        return TorchRunner(
            self._source, self.inputs[0].shape[1:], name=self.name, device=self.device,
            mode=self._mode, precision=self.precision,
            threads=None if threads is None else int(threads),
        )  # fmt: skip

    def close(self) -> None:
        """Free the network; a second call does nothing."""
        self._network = None

    def placed(self, inputs: Mapping[str, Array]) -> Tensor:
        """The images where the network is, in its precision and layout."""
        (spec,) = self.inputs
        if set(inputs) != {INPUT}:
            raise ConfigError(f"{self.name} takes the input {INPUT!r}, got {sorted(inputs)}")
        array = inputs[INPUT]
        if array.shape[1:] != spec.shape[1:] or array.dtype.kind != "f":
            raise ConfigError(
                f"input {INPUT} of {self.name} must be floats of shape {list(spec.shape)}, got "
                f"{array.dtype} of shape {list(array.shape)}"
            )
        # A copy also where nothing changes: a refill writes into it.
        x = torch.from_numpy(array).to(self.device, DTYPES[self.precision], copy=True)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


class HostRun:
    """One network on one input, on a CPU."""

    def __init__(self, call: Any, x: Tensor) -> None:
        """Run once, which compiles what is to be compiled; the outputs are poisoned."""
        self._call, self._x = call, x
        self._output: Any = None
        with torch.inference_mode():
            self._first_run()
            for tensor in _pytree.tree_leaves(self._output):
                # What a run does not write is seen.
                tensor.fill_(torch.nan if tensor.is_floating_point() else 0)

    def _first_run(self) -> None:
        self._output = self._call(self._x)

    def __call__(self) -> None:
        """Run once; returns when the outputs are complete."""
        with torch.inference_mode():
            self._output = self._call(self._x)

    def refill(self, inputs: Mapping[str, Array]) -> None:
        """Other inputs of the same shapes."""
        self._x.copy_(torch.from_numpy(inputs[INPUT]))

    def outputs(self) -> dict[str, Array]:
        """The outputs of the last call, on the host; bfloat16 as float32."""
        return _named(self._output)


class CudaRun(HostRun):
    """One network on one input, on a GPU: what is current when this is made is its stream."""

    def __init__(self, call: Any, x: Tensor) -> None:
        """Run once on the current stream."""
        self.stream = torch.cuda.current_stream()
        super().__init__(call, x)
        self.stream.synchronize()

    def submit(self) -> None:
        """Queue one run."""
        with torch.inference_mode():
            self._output = self._call(self._x)

    def __call__(self) -> None:
        """Run once; returns when the outputs are complete."""
        self.submit()
        self.stream.synchronize()

    def stopwatch(self, runs: int) -> StreamStopwatch:
        """CUDA events on the run's stream."""
        return StreamStopwatch(self.stream, runs)


class GraphRun(CudaRun):
    """One captured CUDA graph: fixed addresses, one launch."""

    def _first_run(self) -> None:
        make: Any = torch.cuda.Stream  # no annotations in torch
        side = make()
        side.wait_stream(self.stream)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                self._call(self._x)
        self.stream.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._call(self._x)

    def submit(self) -> None:
        """Queue one replay."""
        self._graph.replay()


@contextmanager
def fresh_compilation() -> Iterator[None]:
    """Inside, nothing that was compiled before is found again, nor is it outside afterwards.

    What cuDNN chose by trying (`torch.backends.cudnn.benchmark`, off by default) stays: torch has
    no way to forget it, so that choice is drawn once a process.
    """
    inductor: Any = importlib.import_module("torch._inductor.utils")
    fresh = getattr(inductor, "fresh_cache", None) or inductor.fresh_inductor_cache
    torch.compiler.reset()
    with fresh():
        yield
    torch.compiler.reset()


def _recompiling() -> AbstractContextManager[None]:
    """Room for every load at every batch size."""
    settings: Any = torch._dynamo.config
    room: AbstractContextManager[None] = settings.patch(recompile_limit=RECOMPILE_LIMIT)
    return room


def _copied(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).eval()


def _named(outputs: Any) -> dict[str, Array]:
    """Outputs by the names that they have in an exported file too, on the host."""
    leaves = _pytree.tree_leaves(outputs)
    names: list[str] = [f"output_{index}" for index in range(len(leaves))]
    if len(leaves) == 1:
        names = ["logits"]
    elif isinstance(outputs, dict) and len(outputs) == len(leaves):
        names = [str(name) for name in outputs]
    return {name: _on_host(leaf) for name, leaf in zip(names, leaves, strict=True)}


def _on_host(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _digest(network: nn.Module) -> str:
    """Of the network's code, or its layers in words, and every tensor."""
    words = network.code if isinstance(network, fx.GraphModule) else repr(network)
    digest = hashlib.sha256(str(words).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
