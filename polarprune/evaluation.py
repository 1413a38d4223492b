"""How good a network is on a split."""

import torch
from torch import nn

from polarprune.datasets import Split
from polarprune.devices import autocast, fast_layout
from polarprune.graph.comparing import in_mode


@torch.no_grad()
def evaluate(net: nn.Module, split: Split, batch_size: int = 512, bf16: bool = False) -> float:
    """Top-1 of a network on a split, 0..1; each layer's mode is as before."""
    device = next(net.parameters()).device
    layout = fast_layout(net, device)
    right = 0
    with in_mode(net, training=False):
        for images, labels in split.batches(batch_size, shuffle_seed=None, augment=False):
            with autocast(device, bf16):
                outputs = net(images.to(device, memory_format=layout))
            right += int((outputs.argmax(1) == labels.to(device)).sum())
    return right / len(split)
