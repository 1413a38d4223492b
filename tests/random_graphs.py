"""Random networks as random nests of what people write, from a text that rebuilds each of them.

    Recipe.of_seed(7).network()                    # for the recorded run
    @given(recipes())                              # for Hypothesis, which shrinks block by block
    Recipe(blocks=[("conv", {"stride": 2})])       # as a failure prints it

The blocks are in random_blocks.py.
"""

import ast
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from hypothesis import strategies as st
from random_blocks import HEADS, REPERTOIRE, make
from random_descriptions import Branches, Description, Nested, chain, choices_of
from torch import Tensor, nn

MOST_BLOCKS, DEEPEST = 5, 2
# Layers between which the rest stands: as often as in a network that somebody wrote.
_COMMON = ("conv", "norm", "activation")
_NESTING = {
    name
    for name in REPERTOIRE
    if any(isinstance(choice, Nested | Branches) for choice in choices_of(name).values())
}


@dataclass(frozen=True)
class Recipe:
    """All that is needed to build one network and an image for it."""

    blocks: list[Description] = field(default_factory=list)
    head: Description = ("pool_linear", {})
    channels: int = 8
    height: int = 8
    width: int = 8
    batch: int = 2
    seed: int = 0

    @classmethod
    def of_seed(cls, seed: int) -> "Recipe":
        return _draw_recipe(_Seeded(random.Random(seed)), seed)

    @classmethod
    def of_text(cls, text: str) -> "Recipe":
        return cls(**ast.literal_eval(text))

    def text(self) -> str:
        """One line that of_text reads; defaults are left out."""
        plain = asdict(Recipe())
        return repr({k: v for k, v in vars(self).items() if v != plain[k]})

    def __repr__(self) -> str:
        return f"Recipe(**{self.text()})"

    def network(self) -> nn.Module:
        """In float64 and evaluation mode, with no number that is 0 or 1 by default."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return _randomised(RandomNetwork(self), self.seed).double().eval()

    def image(self, batch: int | None = None, more: int = 0) -> Tensor:
        """Pixels for the network; `more` of them along each side."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (batch or self.batch, 3, self.height + more, self.width + more)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def operators(self) -> Iterator[str]:
        """Every block and every option that is not the plainest, for the distribution."""
        for description in [*self.blocks, self.head]:
            yield from _operators(description)


class RandomNetwork(nn.Module):
    """A convolution, the blocks, the head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        x = torch.randn(2, 3, recipe.height, recipe.width)
        self.stem = nn.Conv2d(3, recipe.channels, 3, padding=1)
        with torch.no_grad():
            x = self.stem(x)
        self.blocks, x = chain(x, recipe.blocks)
        self.head = make(recipe.head, x)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.blocks(self.stem(x)))


def _randomised(net: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    with torch.no_grad():
        for module in net.modules():
            ranges = (
                {"weight": (0.5, 1.5), "bias": (-0.3, 0.9)} if isinstance(module, norms) else {}
            )
            ranges |= {"running_mean": (-0.5, 0.5), "running_var": (0.5, 2.0)} if ranges else {}
            if isinstance(module, nn.PReLU):
                ranges = {"weight": (0.05, 0.5)}
            for name, (low, high) in ranges.items():
                tensor = getattr(module, name, None)
                if tensor is not None:
                    tensor.uniform_(low, high, generator=generator)
    return net


def _operators(description: Description) -> Iterator[str]:
    name, options = description
    yield name
    for option, value in options.items():
        choice = choices_of(name)[option]
        if isinstance(choice, Nested):
            for inner in value:
                yield from _operators(inner)
        elif isinstance(choice, Branches):
            for body in value:
                for inner in body:
                    yield from _operators(inner)
        else:
            yield f"{name}, {option}: {value}"


class Chooser(Protocol):
    """Where choices come from: a seed, or Hypothesis."""

    def one_of(self, options: Sequence[Any]) -> Any: ...

    def several(self, make_one: Callable[["Chooser"], Any], least: int, most: int) -> list: ...


class _Seeded:
    def __init__(self, generator: random.Random) -> None:
        self.generator = generator

    def one_of(self, options: Sequence[Any]) -> Any:
        return self.generator.choice(options)

    def several(self, make_one: Callable[[Chooser], Any], least: int, most: int) -> list:
        return [make_one(self) for _ in range(self.generator.randint(least, most))]


class _Drawn:
    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw

    def one_of(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def several(self, make_one: Callable[[Chooser], Any], least: int, most: int) -> list:
        one = st.composite(lambda draw: make_one(_Drawn(draw)))()
        return self.draw(st.lists(one, min_size=least, max_size=most))


def _draw_block(chooser: Chooser, depth: int) -> Description:
    plain = [name for name in REPERTOIRE if name not in _NESTING]
    nesting = sorted(_NESTING) if depth < DEEPEST else []
    # Half layers, half idioms.
    many = (len(plain) + len(nesting)) // len(_COMMON)
    return _draw_options(chooser, chooser.one_of([*_COMMON * many, *plain, *nesting]), depth)


def _draw_options(chooser: Chooser, name: str, depth: int = 0) -> Description:
    options = {}
    for option, choice in choices_of(name).items():
        if isinstance(choice, Nested):
            options[option] = _draw_blocks(chooser, depth + 1, choice.least, choice.most)
        elif isinstance(choice, Branches):
            options[option] = chooser.several(
                lambda inner: _draw_blocks(inner, depth + 1, 0, 2), choice.least, choice.most
            )
        else:
            # Most options of most layers are the plain ones; a rare one shall meet plain others.
            value = chooser.one_of([*choice[:1] * len(choice), *choice[1:]])
            if value != choice[0]:
                options[option] = value
    return name, options


def _draw_blocks(chooser: Chooser, depth: int, least: int, most: int) -> list[Description]:
    return chooser.several(lambda inner: _draw_block(inner, depth), least, most)


def _draw_recipe(chooser: Chooser, seed: int) -> Recipe:
    return Recipe(
        blocks=_draw_blocks(chooser, 0, 1, MOST_BLOCKS),
        head=_draw_options(chooser, chooser.one_of(list(HEADS))),
        channels=chooser.one_of([8, 4, 6, 5]),
        height=chooser.one_of([8, 7, 9, 12, 17]),
        width=chooser.one_of([8, 7, 11, 14]),
        batch=chooser.one_of([3, 1]),
        seed=seed,
    )


def recipes() -> st.SearchStrategy[Recipe]:
    """Recipes for Hypothesis; a smaller one has fewer blocks and plainer options."""
    return st.composite(lambda draw: _draw_recipe(_Drawn(draw), draw(st.integers(0, 999))))()
