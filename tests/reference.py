"""Slow, obviously right versions of what the graph core does; nothing here imports polarprune.

Which channels a layer reads is written down by hand for each architecture (`wiring`), and closing
is done with plain hooks on the original network: no tracing, no labels, no gates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Unit = tuple[str, int]  # (site name, place in the site)
Decisions = dict[str, Tensor]


@dataclass
class Wiring:
    """Which unit every input position of every reading layer belongs to, and the blocks."""

    blocks: list[str] = field(default_factory=list)
    reads: dict[str, list[Unit]] = field(default_factory=dict)


def _units(site: str, count: int) -> list[Unit]:
    return [(site, place) for place in range(count)]


def cifar_resnet_wiring(blocks_per_stage: int) -> Wiring:
    """Option A: a stage's shortcut puts half of the new channels before the old, half behind."""
    wiring = Wiring()
    stream = _units("conv1", 16)
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(blocks_per_stage):
            name = f"layer{stage}.{block}"
            wiring.blocks.append(name)
            wiring.reads[f"{name}.conv1"] = stream
            wiring.reads[f"{name}.conv2"] = _units(f"{name}.conv1", width)
            if len(stream) < width:
                new = _units(f"{name}.conv2", width - len(stream))
                stream = new[: len(new) // 2] + stream + new[len(new) // 2 :]
    wiring.reads["linear"] = stream
    return wiring


def resnet18_wiring() -> Wiring:
    """torchvision's: a projection starts a stream of its own in each stage but the first."""
    wiring = Wiring()
    stream = _units("conv1", 64)
    for stage, width in ((1, 64), (2, 128), (3, 256), (4, 512)):
        for block in range(2):
            name = f"layer{stage}.{block}"
            wiring.blocks.append(name)
            wiring.reads[f"{name}.conv1"] = stream
            wiring.reads[f"{name}.conv2"] = _units(f"{name}.conv1", width)
            if stage > 1 and block == 0:
                wiring.reads[f"{name}.downsample.0"] = stream
                stream = _units(f"{name}.conv2", width)
    wiring.reads["fc"] = stream
    return wiring


def mobilenet_v2_wiring(net: nn.Module) -> Wiring:
    """A depthwise convolution only hands channels on; 1x1 convolutions read."""
    wiring = Wiring()
    wiring.reads["features.1.conv.1"] = _units("features.0.0", 32)
    stream = _units("features.1.conv.1", 16)
    for place in range(2, 18):
        block = net.get_submodule(f"features.{place}")
        expand, project = f"features.{place}.conv.0.0", f"features.{place}.conv.2"
        wiring.reads[expand] = stream
        wiring.reads[project] = _units(expand, net.get_submodule(expand).out_channels)
        if block.use_res_connect:
            wiring.blocks.append(f"features.{place}")
        else:
            stream = _units(project, net.get_submodule(project).out_channels)
    wiring.reads["features.18.0"] = stream
    wiring.reads["classifier.1"] = _units("features.18.0", 1280)
    return wiring


def wiring_of(name: str, net: nn.Module) -> Wiring:
    if name.endswith("mobilenet_v2"):
        return mobilenet_v2_wiring(net)
    if name.endswith("resnet18"):
        return resnet18_wiring()
    return cifar_resnet_wiring((int(name.removeprefix("resnet")) - 2) // 6)


@contextmanager
def closed(net: nn.Module, wiring: Wiring, decisions: Decisions) -> Iterator[nn.Module]:
    """Within this context the network itself computes what the decisions say."""
    handles, replaced = [], []
    for layer, units in wiring.reads.items():
        mask = torch.tensor([bool(decisions[site][place]) for site, place in units])
        handles.append(net.get_submodule(layer).register_forward_pre_hook(_zero_where(mask)))
    for name in wiring.blocks:
        if not decisions[name][0]:
            block = net.get_submodule(name)
            block.forward = _shortcut_only(block)  # an instance attribute hides the method
            replaced.append(block)
    try:
        yield net
    finally:
        for handle in handles:
            handle.remove()
        for block in replaced:
            del block.forward


def _zero_where(mask: Tensor):
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        shape = (1, -1) + (1,) * (args[0].dim() - 2)
        return (torch.where(mask.reshape(shape), args[0], 0.0),)

    return hook


def _shortcut_only(block: nn.Module):
    if hasattr(block, "use_res_connect"):
        return lambda x: x
    if hasattr(block, "downsample"):
        return lambda x: F.relu(x if block.downsample is None else block.downsample(x))
    return lambda x: F.relu(block.shortcut(x))


def counted_macs(net: nn.Module, image: Tensor) -> int:
    """Every convolution and linear layer asked what it multiplied, one output value at a time."""
    total = 0

    def hook(layer: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += result.numel() * layer.in_features
        elif isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            # Each input value is spread over a kernel of every output channel of its group.
            kernel = layer.weight[0, 0].numel()
            total += args[0].numel() * kernel * layer.out_channels // layer.groups
        else:
            total += result.numel() * layer.weight[0].numel()

    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    handles = [m.register_forward_hook(hook) for m in net.modules() if isinstance(m, kinds)]
    modes = {module: module.training for module in net.modules()}
    try:
        with torch.no_grad():
            net.eval()(image[:1])
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return total


def randomise(net: nn.Module) -> nn.Module:
    """Normalisations with statistics and affine parts far from 0 and 1, so that nothing is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                    (module.weight, 0.5, 1.5),
                    (module.bias, 0.3, 1.3),  # one channel alone shall pass a ReLU now and then
                ):
                    if tensor is not None:
                        tensor.uniform_(low, high, generator=generator)
    return net


def random_decisions(sites: list, seed: int, share: float, blocks: float = 0.6) -> Decisions:
    """Each unit open with probability `share`, each block with `blocks`; no site closed whole."""
    generator = torch.Generator().manual_seed(seed)
    decisions = {}
    for site in sites:
        if site.kind == "block":
            decisions[site.name] = torch.rand(1, generator=generator) < blocks
        else:
            chosen = torch.rand(site.units, generator=generator) < share
            chosen[torch.randint(site.units, (1,), generator=generator)] = True
            decisions[site.name] = chosen
    return decisions


def largest_relative_error(expected: Tensor, got: Tensor) -> float:
    assert expected.shape == got.shape, f"shapes {tuple(expected.shape)} and {tuple(got.shape)}"
    assert bool(expected.isfinite().all())
    expected, got = expected.detach(), got.detach()
    return float((expected - got).abs().max() / expected.abs().max())


def without_dropout(net: nn.Module) -> nn.Module:
    """Random zeros would hide any comparison in training mode."""
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return net
