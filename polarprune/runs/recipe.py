"""What `polarprune train` trains with where nothing else is asked for."""

from typing import Any

import torch
from torch import nn

from polarprune.gates import GatedNetwork
from polarprune.runs.train_config import TrainConfig

_PEAK_RATE = 0.2  # at batch size 128


def peak_rate(batch_size: int) -> float:
    """The highest learning rate, in proportion to the batch size (Goyal et al. 2017)."""
    return _PEAK_RATE * batch_size / 128


def make_optimizer(net: nn.Module, config: TrainConfig, rate: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; norms and biases are not decayed."""
    gates = set(net.gate_parameters()) if isinstance(net, GatedNetwork) else set()
    parameters = [p for p in net.parameters() if p.requires_grad and p not in gates]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.momentum > 0)
