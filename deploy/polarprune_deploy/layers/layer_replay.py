"""Times of single layers in torch: on a GPU as one captured CUDA graph of several runs of each.

Each run is the layer with its bias and the ReLU behind it, channels last. Runs take turns on copies
of input and weights that together exceed the last cache twice, so that a run does not find there
what the run before it read; in a network weights were last read a whole pass ago. At most 64 copies
are made: the inputs of layers that are smaller than that would lie in the cache in a network too.

cuDNN takes the kernel that its heuristic favours (`cudnn.benchmark` off, torch's default): letting
it try them all for thousands of shapes would take much longer than everything else here. Timed
cycles of a point are bounded by 20 ms, or by 5 cycles of some 5 ms where those are longer, so that
a table of thousands of points is a matter of minutes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polarprune.errors import Refused, first_line
from polarprune_deploy.backends.cuda_streams import StreamStopwatch
from polarprune_deploy.backends.runner_torch import DTYPES
from polarprune_deploy.cache_regimes import CPU_CACHES, last_cache_bytes
from polarprune_deploy.layers.layer_requests import LayerRequest, Progress

MOST_COPIES = 64
_CYCLE_MS = 5.0  # one after the other through the copies, or through as many as this allows
_POINT_MS = 20.0  # of timed cycles, but never fewer than the next number
_CYCLES = (5, 20)
_WARM_UP_S = 0.5  # until a GPU has left its idle clock
# A virtual machine may report the whole last cache of its host.
_MOST_CPU_BYTES = 32 << 20


class LayerCopies:
    """A layer with several copies of its input and its weights; `run` takes one of them."""

    def __init__(
        self, request: LayerRequest, *, batch: int, copies: int, dtype: torch.dtype, device: str
    ) -> None:
        """Random values; every tensor by itself: kernels are chosen by how addresses are aligned.

        Args:
            batch: images in one run.
        """
        geometry = request.geometry
        inputs, outputs, groups = request.channels
        self._call = _function_of(request)

        def draw(*shape: int) -> tuple[Tensor, ...]:
            made = (torch.randn(*shape, dtype=dtype, device=device) for _ in range(copies))
            if len(shape) == 4:
                return tuple(each.contiguous(memory_format=torch.channels_last) for each in made)
            return tuple(made)

        if geometry.kind == "linear":
            self.inputs = draw(batch * geometry.size[0], inputs)
            weights = draw(outputs, inputs)
        else:
            self.inputs = draw(batch * geometry.copies, inputs, *geometry.size)
            sides = (outputs, inputs // groups)
            if geometry.kind == "conv_transpose":
                sides = (inputs, outputs // groups)
            weights = draw(*sides, *geometry.kernel)
        self.weights = tuple(weight.mul_(0.05) for weight in weights)
        self.biases = draw(outputs)

    def __len__(self) -> int:
        """How many copies."""
        return len(self.inputs)

    def run(self, copy: int) -> Tensor:
        """The layer's output behind its ReLU."""
        return F.relu(self._call(self.inputs[copy], self.weights[copy], self.biases[copy]))


def time_replayed(
    requests: Sequence[LayerRequest],
    *,
    device: str,
    precision: str,
    batch: int,
    seed: int,
    progress: Progress = lambda _done, _of: None,
) -> list[float]:
    """Milliseconds of one run of each layer.

    Args:
        device: "cuda", or "cpu", where nothing is captured and host time is taken.
        precision: of inputs, weights and outputs: "fp32", "fp16" or "bf16".
        batch: images in one run.
        seed: of the values, and of the order in which layers are measured.

    Raises:
        Refused: torch cannot run one of them, for want of memory say.
    """
    torch.manual_seed(seed)
    order = np.random.default_rng(seed).permutation(len(requests)).tolist()
    found = [0.0] * len(requests)
    dtype, cache = DTYPES[precision], _cache_bytes(device)
    with torch.inference_mode(), kernels_by_heuristic():
        for done, place in enumerate(order):
            request = requests[place]
            copies = _copies_for(request, batch, dtype.itemsize, cache)
            try:
                layer = LayerCopies(
                    request, batch=batch, copies=copies, dtype=dtype, device=device
                )  # fmt: skip
                measure = _cuda_ms if device == "cuda" else _host_ms
                found[place] = measure(layer, 0.0 if done else _WARM_UP_S)
            except RuntimeError as error:  # of cuDNN, CUDA or the allocator
                raise Refused(
                    f"torch does not run a {request.geometry} with {request.inputs} and "
                    f"{request.outputs} channels in {precision} on {device} ({first_line(error)})"
                ) from error
            progress(done + 1, len(requests))
    return found


@contextmanager
def kernels_by_heuristic() -> Iterator[None]:
    """Inside, cuDNN does not try its kernels: see the module's own words."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = False
    try:
        yield
    finally:
        cudnn.benchmark = before


def _copies_for(request: LayerRequest, batch: int, itemsize: int, cache: int) -> int:
    geometry = request.geometry
    inputs, outputs, groups = request.channels
    rows = batch * geometry.copies * int(np.prod(geometry.size))
    weights = inputs // groups * outputs * int(np.prod(geometry.kernel))
    return int(min(MOST_COPIES, max(2, -(-2 * cache // (itemsize * (rows * inputs + weights))))))


def _cache_bytes(device: str) -> int:
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return int(properties.L2_cache_size)
    return min(last_cache_bytes(CPU_CACHES), _MOST_CPU_BYTES)


def _function_of(request: LayerRequest) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    geometry = request.geometry
    _, _, groups = request.channels
    axes = len(geometry.kernel)
    if geometry.kind == "linear":
        return F.linear
    transposed = geometry.kind == "conv_transpose"
    function: Any = getattr(F, f"conv{'_transpose' * transposed}{axes}d")

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = function(
            x, weight, bias, stride=geometry.stride, padding=geometry.padding,
            dilation=geometry.dilation, groups=groups,
        )  # fmt: skip
        return out

    return call


def _cycle_length(layer: LayerCopies, one_ms: float) -> int:
    """Runs in one cycle: all copies, or what fits into its time; at least two."""
    return min(len(layer), max(2, int(_CYCLE_MS / max(one_ms, 1e-6))))


def _cycles(cycle_ms: float) -> int:
    least, most = _CYCLES
    return min(most, max(least, int(_POINT_MS / max(cycle_ms, 1e-6))))


def _host_ms(layer: LayerCopies, warm_up_s: float) -> float:
    def cycle(runs: int) -> float:
        start = time.perf_counter_ns()
        for copy in range(runs):
            layer.run(copy)
        return (time.perf_counter_ns() - start) / 1e6

    begun = time.perf_counter()
    one_ms = cycle(1)  # what is set up once is in this one, and in no other
    one_ms = cycle(2) / 2
    while time.perf_counter() - begun < warm_up_s:
        one_ms = cycle(2) / 2
    runs = _cycle_length(layer, one_ms)
    return median(cycle(runs) / runs for _ in range(_cycles(runs * one_ms)))


def _cuda_ms(layer: LayerCopies, warm_up_s: float) -> float:
    """Device time of one run inside a graph of several, the median over replays."""
    stream: Any = torch.cuda.current_stream()
    make: Any = torch.cuda.Stream  # no annotations in torch
    side = make()
    side.wait_stream(stream)
    watch = StreamStopwatch(side, 1)
    with torch.cuda.stream(side):
        for _ in range(2):  # the first loads the kernel
            layer.run(0)
        watch.start(0)
        layer.run(1)
        watch.stop(0)
    runs = _cycle_length(layer, watch.elapsed_ns()[0] / 1e6)
    stream.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(runs):
            layer.run(copy)

    def cycles_ms(count: int) -> list[float]:
        watch = StreamStopwatch(stream, count)
        for number in range(count):
            watch.start(number)
            graph.replay()
            watch.stop(number)
        return [ns / 1e6 for ns in watch.elapsed_ns()]

    cycle_ms = cycles_ms(2)[1]
    begun = time.perf_counter()
    while time.perf_counter() - begun < warm_up_s:
        cycle_ms = cycles_ms(5)[4]
    return median(cycles_ms(_cycles(cycle_ms))) / runs
