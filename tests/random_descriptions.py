"""What describes a block and its options, and how a description becomes a module.

Options are declared with their choices, the plainest first.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from random_fitting import back_in_bounds
from torch import Tensor, nn

Description = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Nested:
    """An option that holds so many blocks."""

    least: int
    most: int


@dataclass(frozen=True)
class Branches:
    """An option that holds so many sequences of blocks."""

    least: int
    most: int


# Complete once random_blocks.py is imported, which also says in what order they are drawn.
DECLARED: dict[str, type[nn.Module]] = {}


def name_of(kind: type[nn.Module]) -> str:
    return re.sub(r"(?<=.)([A-Z])", r"_\1", kind.__name__).lower()


def block(**choices: Any) -> Callable[[Any], Any]:
    """Declare a class under its own name, with the choices of each of its options."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        kind.choices = choices
        DECLARED[name_of(kind)] = kind
        return kind

    return register


def choices_of(name: str) -> dict[str, Any]:
    return DECLARED[name].choices


def make(description: Description, x: Tensor) -> nn.Module:
    """The block of a description, for inputs like x; options left out have their first choice."""
    name, given = description
    plainest = {
        option: [[]] * choice.least if isinstance(choice, Branches) else []
        if isinstance(choice, Nested) else choice[0]
        for option, choice in choices_of(name).items()
    }  # fmt: skip
    return DECLARED[name](x, **{**plainest, **given})


def output_of(module: nn.Module, x: Tensor) -> Tensor:
    """What a block gives in evaluation mode, for building the next one."""
    with torch.no_grad():
        return module.eval()(x.clone())


def chain(x: Tensor, descriptions: list[Description]) -> tuple[nn.Sequential, Tensor]:
    """Blocks one after the other, kept within bounds, and what they give."""
    layers = nn.Sequential()
    for description in descriptions:
        layer: nn.Module | None = make(description, x)
        while layer is not None:
            layers.append(layer)
            x = output_of(layer, x)
            layer = back_in_bounds(x)
    return layers, x
