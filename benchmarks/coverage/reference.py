"""The same closing without our tracing: plain hooks on the network as its author wrote it.

A closed channel is one that nobody reads. So the original, eager network with zeros written over
the closed positions of every reading layer's input has to give what the collapsed network gives.
Only which positions those are is taken from the analysis.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polarprune.gates import GatedNetwork

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Readers:
    """The reading layers of a gated network, as far as they are layers of the original.

    Attributes:
        positions: per layer the (site, unit) of each input position, None where nothing is gated.
        skipped: per layer that cannot be hooked, the reason.
        sites: channel sites of which every reader can be hooked; only these are compared.
    """

    positions: dict[str, list[tuple[str, int] | None]]
    skipped: dict[str, str]
    sites: frozenset[str]


def find_readers(net: nn.Module, gated: GatedNetwork, images: Tensor) -> Readers:
    """The layers that read gated channels, checked against the original network.

    Args:
        net: the original; run once, left as it was.
    """
    analysis = gated.analysis
    calls, inputs = _calls(net, images)
    modules = dict(net.named_modules())
    positions: dict[str, list[tuple[str, int] | None]] = {}
    skipped: dict[str, str] = {}
    lost: set[int] = set()
    for cost in analysis.costs:
        if cost.mix.depthwise or not cost.reads:
            continue
        layer, found = cost.mix.layer, analysis.units_at(cost.mix.inputs)
        reason = _why_not(modules.get(layer), calls[layer], inputs.get(layer), len(found))
        if reason:
            skipped[layer] = reason
            lost |= set(cost.reads)
            continue
        positions[layer] = [
            (analysis.sites[site].name, unit) if site >= 0 else None
            for site, unit in found.tolist()
        ]
    sites = {
        site.name
        for place, site in enumerate(analysis.sites)
        if site.kind == "channel" and place not in lost
    }
    return Readers(positions, skipped, frozenset(sites))


def restricted(decisions: dict[str, Tensor], sites: frozenset[str]) -> dict[str, Tensor]:
    """The decisions of these sites; everything else open."""
    return {
        name: decision if name in sites else torch.ones_like(decision)
        for name, decision in decisions.items()
    }


@contextmanager
def closed(net: nn.Module, readers: Readers, decisions: dict[str, Tensor]) -> Iterator[nn.Module]:
    """A context in which the original network reads no closed channel."""
    handles = []
    for layer, units in readers.positions.items():
        mask = torch.tensor([unit is None or bool(decisions[unit[0]][unit[1]]) for unit in units])
        module = net.get_submodule(layer)
        handles.append(module.register_forward_pre_hook(_zero_where_closed(mask)))
    try:
        yield net
    finally:
        for handle in handles:
            handle.remove()


def _zero_where_closed(mask: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tensor = args[0]
        trailing = 0 if isinstance(module, nn.Linear) else tensor.dim() - 2
        selector = mask.reshape(-1, *[1] * trailing)
        return (torch.where(selector, tensor, torch.zeros((), dtype=tensor.dtype)), *args[1:])

    return hook


def _calls(net: nn.Module, images: Tensor) -> tuple[Counter[str], dict[str, int]]:
    """How often each layer is called, and the channels of its input."""
    calls: Counter[str] = Counter()
    inputs: dict[str, int] = {}

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[name] += 1
            if args:
                inputs[name] = args[0].shape[-1 if isinstance(module, nn.Linear) else 1]

        return hook

    handles = [
        module.register_forward_pre_hook(hook_of(name))
        for name, module in net.named_modules()
        if isinstance(module, _LAYERS)
    ]
    try:
        with torch.no_grad():
            net(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    return calls, inputs


def _why_not(module: nn.Module | None, calls: int, channels: int | None, expected: int) -> str:
    """Why a layer cannot be hooked; empty where it can."""
    if module is None:
        return "no module of the original network"
    if not isinstance(module, _LAYERS):
        return f"a {type(module).__name__}, not one convolution or linear layer"
    if calls != 1:
        return f"called {calls} times"
    if channels != expected:
        return f"reads {channels} channels in the original and {expected} in the graph"
    return ""
