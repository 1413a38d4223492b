"""The state of a run between two steps: what a checkpoint of `polarprune train` holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polarprune.errors import CheckpointError, PolarpruneError, first_line
from polarprune.onepass import OnePass
from polarprune.runs.checkpoints import (
    Checkpoint,
    optimizer_tensors,
    restore_optimizer,
    write_checkpoint,
)


def write_run(
    folder: Path, counters: dict[str, Any], one: OnePass, optimizer: torch.optim.Optimizer
) -> None:
    """Write network, optimizers, gates, counters and random number state.

    Args:
        counters: plain JSON values of the caller's own.
    """
    state = one.state_dict()
    gate_state = {
        f"{index}|{key}": value
        for index, values in state.pop("gate_optimizer").items()
        for key, value in values.items()
    }
    names = {p: name for name, p in one.network.named_parameters()}
    fixed = [name for p, name in names.items() if not p.requires_grad]
    write_checkpoint(
        folder,
        {**counters, "one": state, "settled": one.settled, "fixed": fixed},
        {
            "network": {} if one.settled else one.network.state_dict(),
            "optimizer": optimizer_tensors(optimizer, names),
            "gates": gate_state,
            "random": _random_state(next(one.network.parameters()).device),
        },
        one.network if one.settled else None,
    )


@contextmanager
def as_written(folder: Path) -> Iterator[None]:
    """Say so where what a checkpoint holds is not what write_run wrote.

    Raises:
        CheckpointError: something is missing or of another kind.
    """
    try:
        yield
    except PolarpruneError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {folder} is not whole ({type(error).__name__}: {first_line(error)}); move "
            f"{folder.parent} away and start again without --resume"
        ) from error


def restore_run(
    found: Checkpoint,
    one: OnePass,
    optimizer: torch.optim.Optimizer,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
) -> torch.optim.Optimizer:
    """Put a checkpoint back; the optimizer to go on with.

    Args:
        one: freshly made, of the same gated network.
        optimizer: of the gated network.
        make_optimizer: makes one for the small network of a run that had settled.

    Raises:
        CheckpointError: the optimizer's state does not fit the network.
    """
    state = {**found.document["one"], "gate_optimizer": _by_index(found.tensors.get("gates", {}))}
    settled = None
    if found.document["settled"]:
        assert found.network is not None
        device = next(one.network.parameters()).device
        settled = found.network.to(device).train()
        for name in found.document["fixed"]:
            settled.get_parameter(name).requires_grad_(False)
        optimizer = make_optimizer(settled)
    one.load_state_dict(state, settled)  # cuts what had been cut: then the weights fit
    if settled is None:
        one.network.load_state_dict(found.tensors["network"])
    parameters = dict(one.network.named_parameters())
    restore_optimizer(optimizer, parameters, found.tensors.get("optimizer", {}))
    torch.set_rng_state(found.tensors["random"]["cpu"])
    if "cuda" in found.tensors["random"]:
        torch.cuda.set_rng_state(found.tensors["random"]["cuda"])
    return optimizer


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _by_index(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition("|")
        found.setdefault(int(index), {})[key] = tensor
    return found
