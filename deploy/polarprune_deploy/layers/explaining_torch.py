"""Two networks in memory, eager torch, either device: the same explanation as for ONNX files.

Layers are padded one by one here and timed alone, not as a network, so what their counts cost is
an estimate: the ratio of the two times, of the layer's time in the network.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from polarprune_deploy.layers.explanation import Explanation, conclude
from polarprune_deploy.layers.layer_times import Layer, Measured, NetworkTimes, Padded, Roof, fitted
from polarprune_deploy.layers.layer_times_torch import WARM_UP, time_networks, waiting
from polarprune_deploy.layers.roofline import best_ms
from polarprune_deploy.quiet_runs import median_noise, quietest, timed, watched

MULTIPLES = (8, 16, 32)
RUNS, FEWEST_RUNS = 60, 9
SECONDS = 20.0
"""The timed part of both networks; slow ones get fewer runs, and the words say how many."""
COSTLIEST = 12
"""Layers that are padded and timed; the others take too little to matter."""
SIDE = 2048
WORKING_SETS = (3 * 2**20, 3 * 2**24, 3 * 2**27)
CHAIN = 64


def explain_torch(dense: nn.Module, pruned: nn.Module, example: Tensor) -> Explanation:
    """Why is the pruned network not faster, or not by more?

    Args:
        dense: what it was made from, on the example's device, in its precision; put into
            evaluation mode.
        pruned: the small network, likewise.
        example: the batch to run, (n, c, h, w).

    Raises:
        ConfigError: a network has no convolution or linear layer.
    """
    networks = dense.eval(), pruned.eval()
    with torch.inference_mode():
        runs = _affordable_runs(networks, example)
        timed_networks = time_networks(networks, example, runs)
        before, after = timed_networks.times
        if not example.is_cuda:
            before, after = fitted(before, 0.0), fitted(after, 0.0)
        measured = Measured(
            backend="torch",
            device=example.device.type,
            batch=len(example),
            dense=before,
            pruned=after,
            roof=measure_roof_torch(example),
            # On a CPU an operator's own time has its dispatch in it.
            launch_ms=_launch_ms(example) if example.is_cuda else 0.0,
            noise_ms=median_noise(timed_networks.quiet_ms[1]),
            runs=len(timed_networks.quiet_ms[1]),
            interrupted=timed_networks.interrupted,
            padded=_padded_layers(pruned, after, example, runs),
            why_not_padded="no layer has counts that are not multiples already",
            settings={"precision": _precision(example), "threads": torch.get_num_threads()},
        )
    return conclude(measured)


def measure_roof_torch(example: Tensor) -> Roof:
    """Peaks on the example's device and in its precision: a product, and a sum at several sizes."""
    side = SIDE if example.is_cuda else SIDE // 2
    left = torch.full((side, side), 0.5, dtype=example.dtype, device=example.device)
    peak = side**3 / best_ms(_to_the_end(lambda: left @ left, example))
    bandwidths = []
    for size in WORKING_SETS:
        count = size // 3 // example.element_size()
        one = torch.full((count,), 0.5, dtype=example.dtype, device=example.device)
        out = torch.empty_like(one)
        call = _adder(one, out)
        bandwidths.append((size, size / best_ms(_to_the_end(call, example))))
    return Roof(peak, tuple(bandwidths))


def _adder(one: Tensor, out: Tensor) -> Callable[[], Any]:
    other = one.clone()
    return lambda: torch.add(one, other, out=out)


def _to_the_end(call: Callable[[], Any], example: Tensor) -> Callable[[], None]:
    """The call and the wait for what it launched."""

    def whole() -> None:
        call()
        if example.is_cuda:
            torch.cuda.synchronize(example.device)

    return whole


def _affordable_runs(networks: Sequence[nn.Module], example: Tensor) -> int:
    """So many that plain and profiled ones take `SECONDS`."""
    once = 0.0
    for network in networks:
        call = waiting(network, example)
        once += min(timed(call) for _ in range(2))
    return max(FEWEST_RUNS, min(RUNS, int(SECONDS * 1e3 / (2 * once))))


def _launch_ms(example: Tensor) -> float:
    """What one more operator on next to nothing adds to a run."""
    one = torch.zeros(1, dtype=example.dtype, device=example.device)

    def chain(length: int) -> Callable[[], None]:
        def call() -> None:
            value = one
            for _ in range(length):
                value = value.neg()

        return call

    long, short = (
        median(timed(_to_the_end(chain(length), example)) for _ in range(RUNS))
        for length in (CHAIN, 1)
    )
    return max(0.0, (long - short) / (CHAIN - 1))


def _padded_layers(
    network: nn.Module, times: NetworkTimes, example: Tensor, runs: int
) -> tuple[Padded, ...]:
    own, modules = times.layer_ms(), dict(network.named_modules())
    costly = sorted(times.layers, key=lambda layer: -own[layer.name])[:COSTLIEST]
    shapes = _input_shapes(network, {layer.name for layer in costly}, example)
    found = []
    for multiple in MULTIPLES:
        layer_ms, macs, widths = {}, {}, {}
        for layer in costly:
            padded = _wider(layer, multiple)
            if layer.kind != "convolution" or layer.groups != 1 or padded == (
                layer.in_channels, layer.out_channels
            ):  # fmt: skip
                continue
            shape, module = shapes[layer.name], modules[layer.name]
            widths_now = layer.in_channels, layer.out_channels
            wide, now = _alone_ms(module, (padded, widths_now), shape, example, runs)
            layer_ms[layer.name] = own[layer.name] * wide / now
            grown = padded[0] * padded[1] / (layer.in_channels * layer.out_channels)
            macs[layer.name], widths[layer.name] = round(layer.macs * grown), padded
        if layer_ms:
            found.append(Padded(multiple, None, None, layer_ms, macs, widths))
    return tuple(found)


def _wider(layer: Layer, multiple: int) -> tuple[int, int]:
    """Both counts rounded up; an image's three channels stay."""
    up = [-(-width // multiple) * multiple for width in (layer.in_channels, layer.out_channels)]
    return (layer.in_channels if layer.in_channels <= 3 else up[0], up[1])


def _alone_ms(
    module: nn.Module,
    each_widths: Sequence[tuple[int, int]],
    shape: tuple[int, ...],
    example: Tensor,
    runs: int,
) -> list[float]:
    """The layer by itself with each of these channel counts, in turn."""
    calls = [_alone(module, widths, shape, example) for widths in each_widths]
    taken: list[list[tuple[int, float]]] = [[] for _ in calls]
    for _ in range(WARM_UP + runs):
        for call, mine in zip(calls, taken, strict=True):
            mine.append(watched(call))
    return [median(ms for _, ms in quietest(mine[WARM_UP:], lambda run: run)) for mine in taken]


def _alone(
    module: nn.Module, widths: tuple[int, int], shape: tuple[int, ...], example: Tensor
) -> Callable[[], None]:
    alone: Any = copy.deepcopy(module)
    sizes = (widths[1], widths[0], *alone.weight.shape[2:])
    weight = _laid_out_like(alone.weight, alone.weight.new_full(sizes, 0.01))
    alone.in_channels, alone.out_channels = widths
    alone.weight = nn.Parameter(weight, requires_grad=False)
    if alone.bias is not None:
        alone.bias = nn.Parameter(alone.bias.new_zeros(widths[1]), requires_grad=False)
    images = example.new_full((shape[0], widths[0], *shape[2:]), 0.5)
    return waiting(alone, _laid_out_like(example, images))


def _laid_out_like(model: Tensor, tensor: Tensor) -> Tensor:
    """Channels last where the model is."""
    if model.ndim != 4 or not model.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def _input_shapes(
    network: nn.Module, names: set[str], example: Tensor
) -> Mapping[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, module in network.named_modules():
        if name in names:

            def look(module: nn.Module, given: Any, name: str = name) -> None:
                shapes[name] = tuple(given[0].shape)

            handles.append(module.register_forward_pre_hook(look))
    network(example)
    for handle in handles:
        handle.remove()
    return shapes


def _precision(example: Tensor) -> str:
    names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
    return names.get(example.dtype, "fp32")
