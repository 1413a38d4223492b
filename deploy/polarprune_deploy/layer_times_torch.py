"""Where torch spends a run in eager mode: its profiler's operators, and the layers they belong to.

Each layer of the network opens a named range around its forward. On a CPU an operator's own time
counts, on a GPU the time of the kernels it launched, so that what is left of a run there is waiting
for launches. A CUDA graph or a compiled network has no such ranges; its layers' times are those of
the same network run eagerly.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from polarprune.errors import ConfigError
from polarprune_deploy.layer_times import Kernel, Layer, NetworkTimes
from polarprune_deploy.quiet_runs import quietest, watched

RUNS, WARM_UP = 60, 5
_OURS = "polarprune "
_RANGE, _RUN = f"{_OURS}layer: ", f"{_OURS}run: "
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layer_times(network: nn.Module, example: Tensor, *, runs: int = RUNS) -> NetworkTimes:
    """Time a network in memory, where its parameters are, in evaluation mode.

    Args:
        network: any module; left as it was.
        example: the batch to run, (n, c, h, w), on the network's device.
        runs: timed runs, and profiled ones, at least 20 for a median worth the name.

    Raises:
        ConfigError: the network has no convolution or linear layer.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            layers = read_layers(network, example)
            if not layers:
                raise ConfigError(
                    f"{type(network).__name__} has no convolution or linear layer, so there are "
                    "no MACs to explain its time by"
                )
            run_ms = time_runs(network, example, runs)
            kernels = _profile(network, example, runs)
    finally:
        network.train(was_training)
    quiet = [ms for _, ms in quietest(run_ms, lambda run: run)]
    return NetworkTimes(type(network).__name__, median(quiet), tuple(kernels), tuple(layers))


def read_layers(network: nn.Module, example: Tensor) -> list[Layer]:
    """The layers that one run of the example calls, in that order, counted for its batch."""
    found: dict[str, Layer] = {}
    handles = []
    for name, module in _counted(network):

        def look(module: nn.Module, given: Any, got: Any, name: str = name) -> None:
            found[name] = _layer(name, module, given[0], got)

        handles.append(module.register_forward_hook(look))
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def time_runs(network: nn.Module, example: Tensor, runs: int) -> list[tuple[int, float]]:
    """Interruptions and host latency in ms of each run, to complete outputs, after a warm-up."""

    def call() -> None:
        network(example)
        if example.is_cuda:
            torch.cuda.synchronize(example.device)

    return [watched(call) for _ in range(WARM_UP + runs)][WARM_UP:]


def _profile(network: nn.Module, example: Tensor, runs: int) -> list[Kernel]:
    """Medians over the runs, of each operator of each layer, and of operators of no layer."""
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU]
    if example.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    with _ranges(network):
        time_runs(network, example, 0)
        with profile(activities=activities) as profiler:
            for number in range(runs):
                with record_function(f"{_RUN}{number}"):
                    network(example)
                if example.is_cuda:
                    torch.cuda.synchronize(example.device)
    lengths: dict[int, float] = {}
    times: dict[tuple[str | None, str, int], dict[int, float]] = {}
    seen: dict[tuple[int, str | None, str], int] = {}
    for event in profiler.events():
        run, layer = _place(event)
        if run is None:
            continue
        if event.name.startswith(_RUN):
            lengths[run] = float(event.time_range.elapsed_us())
        ms = 0.0 if event.name.startswith(_OURS) else _own_ms(event, example.is_cuda)
        if ms <= 0:
            continue
        count = seen[run, layer, event.name] = seen.get((run, layer, event.name), -1) + 1
        times.setdefault((layer, event.name, count), {})[run] = ms
    quiet = quietest(list(lengths), lambda run: (lengths[run],))
    return [
        Kernel(f"{name} {count}", name, layer, median(each[run] for run in quiet if run in each))
        for (layer, name, count), each in times.items()
        if 2 * sum(run in each for run in quiet) > len(quiet)  # else it is the profiler's own
    ]


def _own_ms(event: Any, on_gpu: bool) -> float:
    if on_gpu:
        return sum(float(kernel.duration) for kernel in event.kernels) / 1e3
    return float(event.self_cpu_time_total) / 1e3


def _place(event: Any) -> tuple[int | None, str | None]:
    """The run and the layer whose ranges an event lies in."""
    layer: str | None = None
    while event is not None:
        if layer is None and event.name.startswith(_RANGE):
            layer = event.name.removeprefix(_RANGE)
        if event.name.startswith(_RUN):
            return int(event.name.rpartition(" ")[2]), layer
        event = event.cpu_parent
    return None, None


@contextmanager
def _ranges(network: nn.Module) -> Iterator[None]:
    from torch.profiler import record_function

    handles = []
    open_ranges: list[Any] = []

    def enter(name: str) -> None:
        entered: Any = record_function(f"{_RANGE}{name}")
        entered.__enter__()
        open_ranges.append(entered)

    for name, module in _counted(network):
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(
            module.register_forward_hook(lambda *_: open_ranges.pop().__exit__(None, None, None))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counted(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    kinds = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)
    return ((name, part) for name, part in network.named_modules() if isinstance(part, kinds))


def _layer(name: str, module: Any, given: Tensor, got: Tensor) -> Layer:
    weight = module.weight
    moved = weight.element_size() * (given.numel() + got.numel() + weight.numel())
    if isinstance(module, nn.Linear):
        macs = got.numel() * module.in_features
        return Layer(name, "linear", macs, moved, module.in_features, module.out_features)
    spatial = tuple(module.kernel_size)
    if isinstance(module, _CONVOLUTIONS):
        macs = got.numel() * prod(spatial) * module.in_channels // module.groups
    else:
        macs = given.numel() * prod(spatial) * module.out_channels // module.groups
    return Layer(
        name, "convolution", macs, moved, module.in_channels, module.out_channels, module.groups,
        spatial, tuple(module.stride),
    )  # fmt: skip
