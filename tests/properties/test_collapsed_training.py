"""A collapsed network trains as the frozen gated one does, at the positions that were kept.

One step is made with all gates open, so that the optimizer has a state; then the network is cut as
OnePass cuts it, and both sides go on. SGD with momentum and AdamW work on each number alone, so
parameters, optimizer state and running statistics have to agree. Two exceptions, both shown here:

- A weight that is computed from a parameter (standardised, weight norm) is held by the collapsed
  network as it is. Its values and all other parameters' first step agree; its own step is another
  one, since it goes another way than through the computation, and so is everything after it.
- Adafactor mixes the numbers of a whole tensor (means over rows and columns, clipping), so what was
  cut away takes part in the frozen network's step. Its state is cut, the next step is another one.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from known_networks import NAMES, STANDARDISED, build, distinct, images, parts
from random_graph_checks import decide, set_repaired, worst_error
from random_graphs import Recipe
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from training_steps import largest_difference, network_parameters, train_step, without_chance

import polarprune
from polarprune.collapsing import collapse_with_origins
from polarprune.errors import Refused
from polarprune.gates import GatedNetwork
from polarprune.graph.cut import Cut
from polarprune.optimizer_state import hand_over

# Only the order of summation differs, in three steps one after the other.
EXACT = 1e-9
STEPS = 3
SEEDS = range(30)
MOST_REFUSED = 3
PLAIN = [name for name in NAMES if name not in STANDARDISED]

Optimize = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
sgd: Optimize = partial(torch.optim.SGD, lr=1e-4, momentum=0.9, weight_decay=0.01, nesterov=True)
adamw: Optimize = partial(torch.optim.AdamW, lr=1e-3, eps=1e-3, weight_decay=0.01, amsgrad=True)
adafactor: Optimize = partial(torch.optim.Adafactor, lr=1e-3)


@dataclass
class Sides:
    """The frozen gated network and what it was cut to, each with its optimizer."""

    gated: GatedNetwork
    optimizer: torch.optim.Optimizer
    small: fx.GraphModule
    small_optimizer: torch.optim.Optimizer
    cut: Cut

    def derived(self) -> set[str]:
        """Parameters of the small network that the gated one computes from others."""
        layers = dict(self.gated.body.named_modules())
        paths = {name: name.rpartition(".") for name, _ in self.small.named_parameters()}
        return {
            name
            for name, (layer, _, tensor) in paths.items()
            if layer in layers and parametrize.is_parametrized(layers[layer], tensor)
        }

    def step(self, x: Tensor, step: int) -> None:
        train_step(self.gated, self.optimizer, x, step)
        train_step(self.small, self.small_optimizer, x, step)

    def largest_error(self) -> float:
        """Over parameters and buffers, at the kept positions."""
        old: dict[str, Tensor] = dict(self.gated.body.named_parameters(remove_duplicate=False))
        old |= dict(self.gated.body.named_buffers(remove_duplicate=False))
        derived, errors = self.derived(), []
        new = dict(self.small.named_parameters()) | dict(self.small.named_buffers())
        for name, tensor in new.items():
            if name in derived:
                continue
            origin = self.cut.origins[name]
            kept = origin.slice(old[origin.name].detach())
            errors.append(largest_difference(kept, tensor))
        return max(errors)


def cut_while_training(
    gated: GatedNetwork, optimize: Optimize, x: Tensor, seed: int = 0
) -> Sides | None:
    """After one step with open gates; None where nothing was closed."""
    without_chance(gated.train())
    optimizer = optimize([p for _, p in network_parameters(gated)])
    train_step(gated, optimizer, x, 0)
    decisions, _ = set_repaired(gated, decide(gated, "half", seed), seed)
    if all(bool(units.all()) for units in decisions.values()):
        return None
    handed, handed_optimizer = copy.deepcopy((gated, optimizer))
    handed.set_decisions(decisions)
    small, cut = collapse_with_origins(handed)
    old = dict(handed.body.named_parameters(remove_duplicate=False))
    hand_over([handed_optimizer], old, small, cut)
    return Sides(gated, optimizer, small, handed_optimizer, cut)


def known(name: str, optimize: Optimize) -> Sides:
    gated = polarprune.attach_gates(build(name), images(0))
    sides = cut_while_training(gated, optimize, images(0))
    assert sides is not None
    return sides


@pytest.mark.parametrize("name", parts(PLAIN))
def test_a_collapsed_network_trains_like_the_frozen_one(name: str) -> None:
    sides = known(name, sgd)
    assert not sides.derived()
    for step in range(1, 1 + STEPS):
        sides.step(images(step), step)
        assert sides.largest_error() <= EXACT, f"step {step}"


@pytest.mark.parametrize("name", ["resnet20", "torchvision:shufflenet_v2_x0_5"])
def test_adam_goes_on_with_its_moments(name: str) -> None:
    sides = known(name, adamw)
    for step in range(1, 1 + STEPS):
        sides.step(images(step), step)
        assert sides.largest_error() <= EXACT, f"step {step}"


def _outputs(net: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return copy.deepcopy(net)(x.clone())  # statistics stay


@pytest.mark.parametrize("name", parts(STANDARDISED))
def test_standardised_weights_are_an_exception_from_the_first_step_on(name: str) -> None:
    sides = known(name, sgd)
    derived = sides.derived()
    assert derived
    assert worst_error(_outputs(sides.gated, images(1)), _outputs(sides.small, images(1))) <= EXACT
    held = {p for group in sides.small_optimizer.param_groups for p in group["params"]}
    assert held == set(sides.small.parameters())
    for weight in derived:
        assert not sides.small_optimizer.state[sides.small.get_parameter(weight)]
    before = {weight: sides.small.get_parameter(weight).detach().clone() for weight in derived}
    sides.step(images(1), 1)
    assert sides.largest_error() <= EXACT  # of all other parameters
    assert not any(torch.equal(before[w], sides.small.get_parameter(w)) for w in derived)
    assert worst_error(_outputs(sides.gated, images(2)), _outputs(sides.small, images(2))) > EXACT


@pytest.mark.parametrize("optimize", [sgd, adamw], ids=["sgd", "adamw"])
def test_collapsed_random_networks_train_like_the_frozen_ones(optimize: Optimize) -> None:
    refused = cuts = 0
    for seed in SEEDS:
        recipe = Recipe.of_seed(seed)
        x = recipe.image(3)
        try:
            gated = polarprune.attach_gates(distinct(recipe.network()), x)
        except Refused:
            refused += 1
            continue
        sides = cut_while_training(gated, optimize, x, seed)
        if sides is None:
            continue
        cuts += 1
        for step in range(1, 2 if sides.derived() else 1 + STEPS):
            sides.step(x * (1 + 0.1 * step), step)
            error = sides.largest_error()
            assert error <= EXACT, f"{error:.1e} at step {step} for {recipe}"
    assert refused <= MOST_REFUSED
    assert cuts >= len(SEEDS) / 2


def test_rows_and_columns_of_adafactor_are_cut() -> None:
    sides = known("resnet20", adafactor)
    old = dict(sides.gated.body.named_parameters())
    shorter = 0
    for name, parameter in sides.small.named_parameters():
        origin = sides.cut.origins[name]
        was, now = sides.optimizer.state[old[origin.name]], sides.small_optimizer.state[parameter]
        assert set(was) == set(now)
        if "row_var" not in was:
            assert torch.equal(now["variance"], origin.slice(was["variance"]))
            continue
        every = [torch.arange(size) for size in old[origin.name].shape]
        kept = [origin.kept.get(axis, all_of_it) for axis, all_of_it in enumerate(every)]
        one = torch.zeros(1, dtype=torch.long)  # the axis over which the mean was taken
        for key, places in (
            ("row_var", [*kept[:-1], one]),
            ("col_var", [*kept[:-2], one, kept[-1]]),
        ):
            assert torch.equal(now[key], was[key][torch.meshgrid(*places, indexing="ij")])
            shorter += now[key].numel() < was[key].numel()
    assert shorter
    sides.step(images(1), 1)
    assert all(bool(p.isfinite().all()) for p in sides.small.parameters())


# The comparison can fail: each of these has to be noticed.


def _reset(optimizer: torch.optim.Optimizer) -> None:
    optimizer.state.clear()


def _rolled(optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].roll(1, 0)


def _no_decay(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.0


@pytest.mark.parametrize("change", [_reset, _rolled, _no_decay])
def test_another_step_would_be_noticed(change: Callable[[torch.optim.Optimizer], None]) -> None:
    sides = known("resnet20", sgd)
    change(sides.small_optimizer)
    sides.step(images(1), 1)
    assert sides.largest_error() > EXACT


def test_other_statistics_would_be_noticed() -> None:
    sides = known("resnet20", sgd)
    for module in sides.small.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.11
    sides.step(images(1), 1)
    assert sides.largest_error() > EXACT
