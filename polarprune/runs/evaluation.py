"""How good a network is on a split."""

import torch
from torch import nn

from polarprune.datasets import Split
from polarprune.devices import autocast, fast_layout
from polarprune.graph.comparing import in_mode
from polarprune.tasks import CLASSIFICATION, Task

# A batch in evaluation: many small images, few large ones.
_MOST_IMAGES, _MOST_PIXELS = 512, 1 << 22


def images_at_once(side: int) -> int:
    """How many images of this side are looked at together."""
    return max(1, min(_MOST_IMAGES, _MOST_PIXELS // side**2))


def evaluate(
    net: nn.Module, split: Split, bf16: bool = False, task: Task = CLASSIFICATION
) -> float:
    """The task's headline of a network on a split, 0..1 (top-1); each layer's mode is as before."""
    return figures_of(net, split, bf16, task)[task.headline]


@torch.no_grad()
def figures_of(
    net: nn.Module, split: Split, bf16: bool = False, task: Task = CLASSIFICATION
) -> dict[str, float]:
    """All that the task counts of a network on a split; each layer's mode is as before."""
    batch_size = images_at_once(split.image_size)
    device = next(net.parameters()).device
    layout = fast_layout(net, device)
    tally = task.tally()
    with in_mode(net, training=False):
        for images, labels in split.batches(batch_size, shuffle_seed=None, augment=False):
            with autocast(device, bf16):
                outputs = net(images.to(device, memory_format=layout))
            tally.add(outputs, labels.to(device))
    return tally.figures()
