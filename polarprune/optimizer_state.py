"""Cut an optimizer together with its network: parameters replaced, their state sliced alike."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polarprune.errors import ConfigError
from polarprune.graph.cut import Cut, Origin

# The parameter that takes a place, and which part of the old one it is: None for none of it.
Replacement = tuple[nn.Parameter, Origin | None]


def check_sliceable(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Refuse optimizers whose state is not one tensor a parameter.

    Raises:
        ConfigError: L-BFGS keeps a history over all parameters at once.
    """
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise ConfigError(
            "LBFGS keeps its state over all parameters at once and cannot be cut; use SGD or Adam"
        )


def take_out(optimizers: Sequence[torch.optim.Optimizer], parameters: set[nn.Parameter]) -> None:
    """Remove parameters from every group, with their state."""
    for optimizer in optimizers:
        _take_out(optimizer, parameters)


def _take_out(optimizer: torch.optim.Optimizer, parameters: set[nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        left = [place for place, p in enumerate(group["params"]) if p not in parameters]
        for key in ("params", "param_names"):  # the latter where parameters were given by name
            if key in group:
                group[key] = [group[key][place] for place in left]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


def hand_over(
    optimizers: Sequence[torch.optim.Optimizer],
    old: dict[str, nn.Parameter],
    small: nn.Module,
    cut: Cut,
) -> None:
    """Give the optimizers the small network's parameters, each with its part of the state.

    What else they hold (the parameters of a loss, of a second network) stays as it is.

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
    # In their order: an optimizer that is made of the small network's parameters, to resume, then
    # has the same ones at the same places, by which torch loads its state.
    names = {parameter: name for name, parameter in small.named_parameters()}
    for optimizer in optimizers:
        _replace_parameters(optimizer, set(old.values()), replacements, names)


def _replace_parameters(
    optimizer: torch.optim.Optimizer,
    network: set[nn.Parameter],
    replacements: dict[nn.Parameter, list[Replacement]],
    names: dict[nn.Parameter, str],
) -> None:
    """Let the optimizer go on with smaller parameters.

    A parameter of the old network without a replacement is gone and leaves its group; one that is
    no part of the old one has no state yet.
    """
    for group in optimizer.param_groups:
        held = group["params"]
        theirs = {  # not the network's, with their names where there are any
            p: name for p, name in zip(held, group.get("param_names", held), strict=True)
            if p not in network
        }  # fmt: skip
        ours = set()
        for old in held:
            state = optimizer.state.pop(old, None) if old in network else None
            for new, origin in replacements.get(old, []):
                ours.add(new)
                sliced = _sliced_state(state, old, new, origin) if state and origin else None
                if sliced:
                    optimizer.state[new] = sliced
        params = {**{p: name for p, name in names.items() if p in ours}, **theirs}
        group["params"] = list(params)
        if "param_names" in group:
            group["param_names"] = list(params.values())


def _sliced_state(
    state: dict[str, Any], old: nn.Parameter, new: nn.Parameter, origin: Origin
) -> dict[str, Any]:
    """The part of a parameter's state that belongs to what is left of it.

    Every tensor of the parameter's length along a cut axis is cut along it (momentum, Adam's
    moments, the rows and columns of torch's Adafactor); step counts stay. Where a tensor's axes are
    not the parameter's (other Adafactors, Kronecker factors) nothing is left: it starts anew.
    """
    tensors = [value for value in state.values() if isinstance(value, Tensor) and value.numel() > 1]
    if new.shape != old.shape and not all(_is_like(value, old, origin) for value in tensors):
        return {}
    return {key: _sliced(value, old, origin) for key, value in state.items()}


def _is_like(value: Tensor, old: nn.Parameter, origin: Origin) -> bool:
    return value.dim() == old.dim() and all(
        value.shape[axis] in (1, old.shape[axis]) for axis in origin.kept
    )


def _sliced(value: Any, old: nn.Parameter, origin: Origin) -> Any:
    if not isinstance(value, Tensor) or value.dim() != old.dim() or old.dim() == 0:
        return value
    axes = {a: kept for a, kept in origin.kept.items() if value.shape[a] == old.shape[a]}
    return Origin(origin.name, axes).slice(value).clone(memory_format=torch.preserve_format)
