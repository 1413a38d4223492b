"""What torch does for a runner on a GPU: memory, a stream, and marks on the stream's clock."""

from typing import Any

import torch
from torch import Tensor


class StreamStopwatch:
    """CUDA events in pairs on one stream."""

    def __init__(self, stream: torch.cuda.Stream, runs: int) -> None:
        """Make all events now: making one takes time that belongs to no run."""
        self._stream = stream
        # The constructor has no annotations in torch.
        make: Any = torch.cuda.Event
        self._pairs = [(make(enable_timing=True), make(enable_timing=True)) for _ in range(runs)]

    def start(self, run: int) -> None:
        """Mark where a run begins."""
        self._pairs[run][0].record(self._stream)

    def stop(self, run: int) -> None:
        """Mark where it ends."""
        self._pairs[run][1].record(self._stream)

    def elapsed_ns(self) -> list[int]:
        """Wait for the last mark; the events tell milliseconds, to half a microsecond."""
        self._pairs[-1][1].synchronize()
        return [round(start.elapsed_time(stop) * 1e6) for start, stop in self._pairs]


class Gpu:
    """The GPU that torch calls current. Tests put a CPU in its place."""

    device = "cuda"

    def make_stream(self) -> Any:
        """A stream of its own."""
        make: Any = torch.cuda.Stream  # no annotations in torch
        return make()

    def handle(self, stream: Any) -> int:
        """The stream as CUDA libraries take it."""
        return int(stream.cuda_stream)

    def stopwatch(self, stream: Any, runs: int) -> StreamStopwatch:
        """A stopwatch on a stream."""
        return StreamStopwatch(stream, runs)

    def capture(self, work: Any, stream: Any) -> Any:
        """A CUDA graph of what `work` queues on the stream; its `replay` takes the current one."""
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
        return graph

    def replay(self, graph: Any, stream: Any) -> None:
        """Queue a captured graph on a stream."""
        with torch.cuda.stream(stream):
            graph.replay()

    def place(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, complete for every stream."""
        placed = tensor.to(self.device)
        torch.cuda.synchronize()
        return placed
