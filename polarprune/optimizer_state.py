"""Cut an optimizer together with its network: parameters replaced, their state sliced alike."""

from typing import Any

import torch
from torch import Tensor, nn

from polarprune.graph.cut import Cut, Origin

# The parameter that takes a place, and which part of the old one it is: None for none of it.
Replacement = tuple[nn.Parameter, Origin | None]


def check_sliceable(optimizer: torch.optim.Optimizer) -> None:
    """Refuse optimizers whose state is not one tensor a parameter.

    Raises:
        ValueError: L-BFGS keeps a history over all parameters at once.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS keeps its state over all parameters at once and cannot be cut")


def take_out(optimizer: torch.optim.Optimizer, parameters: set[nn.Parameter]) -> None:
    """Remove parameters from every group, with their state."""
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p not in parameters]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


def hand_over(
    optimizer: torch.optim.Optimizer, old: dict[str, nn.Parameter], small: nn.Module, cut: Cut
) -> None:
    """Give the optimizer the small network's parameters, each with its part of the state.

    A weight that was computed from other parameters (standardised, parametrised) is a new quantity:
    it takes the place of the first of them and starts without state. Two may have been computed
    from one.

    Args:
        old: the parameters that there were, by name.
        small: what the cut made; its gates have an optimizer of their own.
    """
    replacements: dict[nn.Parameter, list[Replacement]] = {}
    for name, parameter in small.named_parameters():
        if name.startswith("gating."):
            continue
        layer, _, tensor = name.rpartition(".")
        prefix = f"{layer}.parametrizations.{tensor}."
        sources = [path for path in old if path.startswith(prefix)]
        origin = None if sources else cut.origins[name]
        source = old[origin.name if origin is not None else sources[0]]
        replacements.setdefault(source, []).append((parameter, origin))
    _replace_parameters(optimizer, replacements)


def _replace_parameters(
    optimizer: torch.optim.Optimizer, replacements: dict[nn.Parameter, list[Replacement]]
) -> None:
    """Let the optimizer go on with smaller parameters.

    Every state tensor that has a parameter's length along a cut axis is cut along it (momentum,
    Adam's moments, Adafactor's rows and columns); step counts stay. A parameter without a
    replacement is gone and leaves its group; one that is no part of the old one has no state yet.
    """
    for group in optimizer.param_groups:
        kept = [p for p in group["params"] if p in replacements]
        old_state = [(p, optimizer.state.pop(p, None)) for p in group["params"]]
        group["params"] = [new for p in kept for new, _ in replacements[p]]
        for old, state in old_state:
            for new, origin in replacements.get(old, []):
                if state and origin is not None:
                    optimizer.state[new] = {
                        key: _sliced(value, old, origin) for key, value in state.items()
                    }


def _sliced(value: Any, old: nn.Parameter, origin: Origin) -> Any:
    if not isinstance(value, Tensor) or value.dim() != old.dim() or old.dim() == 0:
        return value
    axes = {a: kept for a, kept in origin.kept.items() if value.shape[a] == old.shape[a]}
    return Origin(origin.name, axes).slice(value).clone(memory_format=torch.preserve_format)
