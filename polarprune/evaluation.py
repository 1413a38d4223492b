"""How good a network is on a split."""

import torch
from torch import nn

from polarprune.datasets import Split
from polarprune.devices import autocast, fast_layout


@torch.no_grad()
def evaluate(net: nn.Module, split: Split, batch_size: int = 512, bf16: bool = False) -> float:
    """Top-1 of a network on a split, 0..1; the network's mode is restored."""
    training = net.training
    device = next(net.parameters()).device
    layout = fast_layout(net, device)
    net.eval()
    right = 0
    for images, labels in split.batches(batch_size, shuffle_seed=None, augment=False):
        with autocast(device, bf16):
            outputs = net(images.to(device, memory_format=layout))
        right += int((outputs.argmax(1) == labels.to(device)).sum())
    net.train(training)
    return right / len(split)
