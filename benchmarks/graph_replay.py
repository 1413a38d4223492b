"""A torch network as a runner of polarprune_deploy.latency: on a GPU, one captured CUDA graph.

On the CPU, for rehearsals, the network is called as it is, in float32.
"""

import copy
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from polarprune.manifest import TensorSpec
from polarprune_deploy.runners import Array

WARM_UP_RUNS = 5  # cuDNN tries its kernels, and Inductor compiles, before the capture


@dataclass(frozen=True)
class Setting:
    """What both sides of a comparison share."""

    device: str
    image: int
    compiled: bool

    @property
    def dtype(self) -> torch.dtype:
        """Half precision where there is a GPU."""
        return torch.float16 if self.device == "cuda" else torch.float32

    def as_dict(self) -> dict[str, str | int | float]:
        """For the record."""
        cuda = self.device == "cuda"
        return {
            "graph": "CUDA graph replay" if cuda else "none (rehearsal)",
            "compile": "inductor" if self.compiled else "none",
            "layout": "channels_last",
            "cudnn": f"benchmark {torch.backends.cudnn.benchmark}, "
            f"deterministic {torch.backends.cudnn.deterministic}",
            "threads": torch.get_num_threads(),
        }


class PreparedTorch:
    """One network on one input; on a GPU a call replays the captured graph and waits for it."""

    def __init__(self, network: nn.Module, x: Tensor, *, compiled: bool) -> None:
        """Warm up and, on a GPU, capture; the outputs are poisoned."""
        self._call = torch.compile(network, dynamic=False) if compiled else network
        self._x = x
        self._graph: torch.cuda.CUDAGraph | None = None
        with torch.no_grad():
            if x.is_cuda:
                self._capture()
            else:
                self._output: Tensor = self._call(x)
            self._output.fill_(torch.nan)  # what a run does not write is seen

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                self._call(self._x)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._call(self._x)

    def __call__(self) -> None:
        """Run once; returns when the outputs are complete."""
        if self._graph is not None:
            self._graph.replay()
            torch.cuda.current_stream().synchronize()
            return
        with torch.no_grad():
            self._output = self._call(self._x)

    def outputs(self) -> dict[str, Array]:
        """The outputs of the last call, on the host."""
        return {"output": self._output.cpu().numpy()}


class TorchRunner:
    """A network on one device in one precision."""

    backend = "torch"

    def __init__(self, name: str, network: fx.GraphModule, setting: Setting) -> None:
        """Load a copy; the network given is left unmodified."""
        start = time.perf_counter_ns()
        self.name, self.device = name, setting.device
        self.precision = "fp16" if setting.dtype == torch.float16 else "fp32"
        dtype = str(setting.dtype).removeprefix("torch.")
        self.inputs = (TensorSpec("image", dtype, (-1, 3, setting.image, setting.image)),)
        self.settings = setting.as_dict()
        self.sha256 = _digest(network)
        self._source, self._setting = network, setting
        self._network: nn.Module = copy.deepcopy(network).to(
            device=setting.device, dtype=setting.dtype, memory_format=torch.channels_last
        )
        self.load_ms = (time.perf_counter_ns() - start) / 1e6

    def prepare(self, inputs: Mapping[str, Array]) -> PreparedTorch:
        """The images on the device, and the graph captured."""
        x = torch.from_numpy(inputs["image"])
        x = x.to(self.device, memory_format=torch.channels_last)
        return PreparedTorch(self._network, x, compiled=self._setting.compiled)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, on the host."""
        call = self.prepare(inputs)
        call()
        return call.outputs()

    def twin(self) -> "TorchRunner":
        """The same network loaded a second time: the A/A control."""
        return TorchRunner(self.name, self._source, self._setting)

    def close(self) -> None:
        """Free the network; a second call does nothing."""
        self._network = nn.Identity()


def _digest(network: fx.GraphModule) -> str:
    """Of the graph's code and every tensor."""
    digest = hashlib.sha256(network.code.encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
