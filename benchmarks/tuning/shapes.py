"""Networks of about half the MACs of ResNet-20, by hand: what would a good search have to find?

Factories for --model, as `benchmarks.tuning.shapes:inner_half`. They are trained from the start
for as many epochs as a pass has, so that the room between the uniformly narrowed network and the
best of them is what a choice of blocks and channels can gain by its choice alone.
"""

import json
from pathlib import Path

import torch
from torch import nn

from polarprune.attaching import attach_gates
from polarprune.collapsing import collapse
from polarprune.networks.cifar_resnet import BasicBlock, CifarResNet

_RECORDS = Path(__file__).parents[1] / "results" / "tuning"


def inner_half(num_classes: int = 10) -> CifarResNet:
    """Half of the channels inside of every block; the residual stream is whole (0.505)."""
    net = CifarResNet(3, num_classes)
    for block in _blocks(net):
        _narrow(block, block.conv1.out_channels // 2)
    return net


def late(num_classes: int = 10) -> CifarResNet:
    """Thin where images are large, wide where they are small (0.492)."""
    return CifarResNet(3, num_classes, (8, 25, 52))


def shallow(num_classes: int = 10) -> CifarResNet:
    """All channels, five of nine blocks: 1, 2 and 2 a stage (0.535)."""
    net = CifarResNet(3, num_classes)
    net.layer1 = net.layer1[:1]
    net.layer2 = net.layer2[:2]
    net.layer3 = net.layer3[:2]
    return net


def late_inner(num_classes: int = 10) -> CifarResNet:
    """The stream whole, inside of blocks a third, half and two thirds of the channels (0.495)."""
    net = CifarResNet(3, num_classes)
    for stage, inner in ((net.layer1, 5), (net.layer2, 16), (net.layer3, 43)):
        for block in stage:
            assert isinstance(block, BasicBlock)
            _narrow(block, inner)
    return net


def found(num_classes: int = 10) -> nn.Module:
    """What the default search found with each image deciding in one of 8 steps, untrained."""
    record = json.loads((_RECORDS / "every-8-0.json").read_text())
    gated = attach_gates(CifarResNet(3, num_classes), torch.zeros(1, 3, 32, 32))
    closed = record["cuts"][-1]["sites"]
    gated.set_decisions(
        {site.name: torch.arange(site.units) >= closed.get(site.name, 0) for site in gated.sites}
    )
    net = collapse(gated)
    for module in net.modules():  # as a network of these widths would begin
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return net


def _blocks(net: CifarResNet) -> list[BasicBlock]:
    return [module for module in net.modules() if isinstance(module, BasicBlock)]


def _narrow(block: BasicBlock, inner: int) -> None:
    first, second = block.conv1, block.conv2
    block.conv1 = nn.Conv2d(first.in_channels, inner, 3, stride=first.stride, padding=1, bias=False)
    block.bn1 = nn.BatchNorm2d(inner)
    block.conv2 = nn.Conv2d(inner, second.out_channels, 3, padding=1, bias=False)
    for convolution in (block.conv1, block.conv2):
        nn.init.kaiming_normal_(convolution.weight)


for _factory in (inner_half, late, shallow, late_inner, found):
    _factory.input_size = (3, 32, 32)  # type: ignore[attr-defined]
