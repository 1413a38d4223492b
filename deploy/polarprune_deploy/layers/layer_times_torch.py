"""Where torch spends a run in eager mode: its profiler's operators, and the layers they belong to.

Each layer of the network opens a named range around its forward. On a CPU an operator's own time
counts, on a GPU the time of the kernels it launched, so that what is left of a run there is waiting
for launches. A CUDA graph or a compiled network has no such ranges; its layers' times are those of
the same network run eagerly.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from polarprune.collecting import paused_collection
from polarprune.errors import ConfigError
from polarprune_deploy.layers.layer_times import Kernel, Layer, NetworkTimes
from polarprune_deploy.quiet_runs import quietest, watched

WARM_UP = 5
_OURS = "polarprune "
_RANGE, _RUN = f"{_OURS}layer: ", f"{_OURS}run: "
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class TimedNetworks:
    """Each network's times, and of each the ms of the plain runs they are medians of.

    `interrupted`: another process took CPUs from most of those runs of one of them.
    """

    times: tuple[NetworkTimes, ...]
    quiet_ms: tuple[list[float], ...]
    interrupted: bool


def time_networks(networks: Sequence[nn.Module], example: Tensor, runs: int) -> TimedNetworks:
    """Time networks in memory, where their parameters are: plain runs in turn, then profiled ones.

    Args:
        networks: in evaluation mode.
        example: the batch to run, (n, c, h, w), on the networks' device.
        runs: timed runs of each, and profiled ones.

    Raises:
        ConfigError: a network has no convolution or linear layer.
    """
    for network in networks:
        require_layers(network, type(network).__name__)
    with torch.inference_mode():
        calls = [waiting(network, example) for network in networks]
        taken: list[list[tuple[int, float]]] = [[] for _ in networks]
        with paused_collection():
            for _ in range(WARM_UP + runs):
                for call, mine in zip(calls, taken, strict=True):
                    mine.append(watched(call))
        quiet = [quietest(mine[WARM_UP:], lambda run: run) for mine in taken]
        found = tuple(
            NetworkTimes(
                type(network).__name__,
                median(ms for _, ms in mine),
                tuple(_profile(network, example, runs)),
                tuple(read_layers(network, example)),
            )
            for network, mine in zip(networks, quiet, strict=True)
        )
    interrupted = any(median(count for count, _ in mine) > 0 for mine in quiet)
    return TimedNetworks(found, tuple([ms for _, ms in mine] for mine in quiet), interrupted)


def require_layers(network: nn.Module, name: str) -> None:
    """Refuse a network without layers to time.

    Raises:
        ConfigError: it has no convolution or linear layer.
    """
    if not any(_counted(network)):
        raise ConfigError(
            f"{name} has no convolution or linear layer, so there are no MACs to explain its "
            "time by; leave --explain away"
        )


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


def waiting(network: nn.Module, example: Tensor) -> Callable[[], None]:
    """A run to complete outputs."""

    def call() -> None:
        network(example)
        if example.is_cuda:
            torch.cuda.synchronize(example.device)

    return call


def _profile(network: nn.Module, example: Tensor, runs: int) -> list[Kernel]:
    """Medians over the runs, of each operator of each layer, and of operators of no layer."""
    from torch.profiler import ProfilerActivity, profile, record_function

    # Its tracer writes about itself to stderr, which belongs to people.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU]
    if example.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    with _ranges(network):
        for _ in range(WARM_UP):
            waiting(network, example)()
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
