"""Mistakes of a training loop that would go on and train nothing: named before they cost a run."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polarprune.errors import ConfigError, TrainingError
from polarprune.gates import GatedNetwork


def check_holding(optimizers: Sequence[torch.optim.Optimizer], network: nn.Module) -> None:
    """Refuse optimizers that train something else.

    Raises:
        ConfigError: none of them holds a parameter of the network.
    """
    held = {p for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]}
    if held.isdisjoint(network.parameters()):
        raise ConfigError(
            "the optimizer holds no parameter of the gated network, which is a copy of the one "
            "that attach_gates was given: make it from gated.parameters()"
        )


def check_held_out(images: Tensor | None) -> None:
    """Refuse images (n, ...) that are none.

    Raises:
        ConfigError: n is 0.
    """
    if images is not None and len(images) == 0:
        raise ConfigError("held_out holds no image; give some, or none at all")


def check_learning(gated: GatedNetwork, openness: Float[Tensor, " g"]) -> None:
    """Refuse a batch of the search that teaches gates nothing.

    Args:
        openness: of all units, in that batch.

    Raises:
        TrainingError: it went through the network in evaluation mode, or without gradients.
    """
    if not gated.training:
        raise TrainingError(
            "gates search while the network is in evaluation mode: call one.network.train() (and "
            "put batch norms alone into eval mode, where their statistics are to stay)"
        )
    gone = all(gate.all_gone for gate in gated.gate_modules())
    if torch.is_grad_enabled() and not openness.requires_grad and not gone:
        raise TrainingError(
            "the last forward pass before one.loss() was made without gradients: call one.loss() "
            "right after the training batch has been through one.network"
        )


def check_finite(gated: GatedNetwork) -> None:
    """Refuse to decide by numbers that are none.

    Buffers of the network are not looked at: an attention mask may well hold infinities.

    Raises:
        TrainingError: training has diverged.
    """
    numbers = [*gated.parameters(), *(gate.running for gate in gated.gate_modules())]
    if not all(bool(tensor.isfinite().all()) for tensor in numbers):
        raise TrainingError(
            "a weight or a gate is not finite, so nothing can be decided: training has diverged; "
            "try a smaller learning rate"
        )
