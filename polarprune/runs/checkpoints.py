"""Everything that is needed to go on with a run: one folder, safetensors and JSON, no pickle.

A new checkpoint is written beside the old one and takes its name when it is whole, so that a run
that is killed at any moment leaves one good checkpoint.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polarprune.errors import CheckpointError, first_line, of_another_version
from polarprune.network_files import is_network_folder, load_network, save_network

SCHEMA = 1
_STATE_FILE = "state.json"
_TENSORS_FILE = "state.safetensors"
_NETWORK = "network"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read.

    Attributes:
        document: counters and settings (plain JSON values).
        tensors: named groups of tensors: optimizer state, random number state, weights.
        network: the small network, where the run had settled.
    """

    document: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    network: nn.Module | None


def write_checkpoint(
    folder: Path,
    document: dict[str, Any],
    tensors: dict[str, dict[str, Tensor]],
    network: nn.Module | None,
) -> None:
    """Write a checkpoint; the previous one is kept until this one is whole.

    Args:
        tensors: group name -> tensor name -> tensor; "/" may not be in a group name.
        network: a collapsed network to store whole, or None.
    """
    fresh = folder.with_name(folder.name + ".new")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    flat = {
        f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
        for group, members in tensors.items()
        for name, tensor in members.items()
    }
    save_file(flat, fresh / _TENSORS_FILE)
    if network is not None:
        save_network(network, fresh / _NETWORK)
    (fresh / _STATE_FILE).write_text(json.dumps({"schema": SCHEMA, **document}, indent=1))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to go on from, whole or not."""
    return folder.exists() or folder.with_name(folder.name + ".old").exists()


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The last whole checkpoint, or None where none was ever written.

    Raises:
        CheckpointError: the files are there but truncated or of another schema.
    """
    old = folder.with_name(folder.name + ".old")
    if not folder.exists():
        if not old.exists():
            return None
        folder = old  # killed between the two renames
    try:
        document = json.loads((folder / _STATE_FILE).read_text())
        flat = load_file(folder / _TENSORS_FILE)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {folder} cannot be read ({first_line(error)}); move {folder.parent} away "
            "and start again without --resume"
        ) from error
    if document.get("schema") != SCHEMA:
        found = document.get("schema")
        raise CheckpointError(of_another_version(folder / _STATE_FILE, found, SCHEMA))
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        tensors.setdefault(group, {})[name] = tensor
    network = None
    if is_network_folder(folder / _NETWORK):
        network = load_network(folder / _NETWORK)
    return Checkpoint(document, tensors, network)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Tensor]:
    """An optimizer's state as named tensors; keys are parameter name and state name.

    Args:
        names: the name of each parameter that the optimizer holds.
    """
    return {
        f"{name}|{key}": value
        for parameter, name in names.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    tensors: dict[str, Tensor],
) -> None:
    """Put state back that optimizer_tensors took out.

    Raises:
        CheckpointError: the state is of a parameter that the network does not have.
    """
    for key, value in tensors.items():
        name, _, state = key.partition("|")
        if name not in parameters:
            raise CheckpointError(
                f"the checkpoint has optimizer state for {name}, unknown here; start a new run"
            )
        parameter = parameters[name]
        # Step counters stay where they are; what has the parameter's shape goes to its device.
        at = parameter.device if value.dim() else value.device
        optimizer.state[parameter][state] = value.to(at)
