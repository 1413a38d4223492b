"""Networks of every kind, cut at random, are saved and come back in a fresh process bit by bit."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from known_networks import CHECKED, NAMES, build, images
from random_graph_checks import decide, set_repaired
from random_graphs import Recipe
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import polarprune
from polarprune.errors import Refused

SEEDS = range(20)
MOST_REFUSED = 2  # by attach_gates
MOST_NOT_SAVED = 1  # a comparison of values has no name in a file yet

_LOADER = """
import sys, torch, polarprune
from pathlib import Path
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree
torch.set_num_threads(1)
folder = Path(sys.argv[1])
outputs = {}
for place, x in load_file(folder / "inputs").items():
    with torch.no_grad():
        found = polarprune.load_network(folder / place)(x)
    for leaf, tensor in enumerate(pytree.tree_leaves(found)):
        outputs[f"{place} {leaf}"] = tensor.clone().contiguous()
save_file(outputs, folder / "outputs")
"""


def _cut(net: nn.Module, x: Tensor, seed: int) -> nn.Module:
    gated = polarprune.attach_gates(net.eval(), x)
    set_repaired(gated, decide(gated, "half", seed), seed)
    return polarprune.collapse(gated)


def _known(names: Sequence[str] = CHECKED) -> Iterator[tuple[str, nn.Module, Tensor]]:
    for place, name in enumerate(names):
        yield f"known{place}", _cut(build(name), images(0), place), images(1)


def _random() -> Iterator[tuple[str, nn.Module, Tensor]]:
    refused = 0
    for seed in SEEDS:
        recipe = Recipe.of_seed(seed)
        try:
            small = _cut(recipe.network(), recipe.image(), seed)
        except Refused:
            refused += 1
            continue
        yield f"seed{seed}", small, recipe.image(3)
    assert refused <= MOST_REFUSED


def _leaves(outputs: Any) -> dict[str, Tensor]:
    return {str(place): leaf for place, leaf in enumerate(pytree.tree_leaves(outputs))}


def _all_known() -> Iterator[tuple[str, nn.Module, Tensor]]:
    return _known(NAMES)


@pytest.mark.parametrize(
    "networks", [_known, _random, pytest.param(_all_known, marks=pytest.mark.study)]
)
def test_a_fresh_process_computes_the_same_bits(networks: Any, tmp_path: Path) -> None:
    inputs, expected, not_saved = {}, {}, []
    for place, small, x in networks():
        try:
            polarprune.save_network(small, tmp_path / place)
        except Refused as refused:
            not_saved.append(f"{place}: {refused}")
            continue
        inputs[place] = x
        with torch.no_grad():
            outputs = _leaves(small(x.clone()))
        expected |= {f"{place} {leaf}": tensor for leaf, tensor in outputs.items()}
    save_file(inputs, tmp_path / "inputs")
    subprocess.run([sys.executable, "-c", _LOADER, str(tmp_path)], check=True)
    got = load_file(tmp_path / "outputs")
    assert set(got) == set(expected)
    differing = [name for name, tensor in expected.items() if not torch.equal(tensor, got[name])]
    assert not differing
    assert len(not_saved) <= (MOST_NOT_SAVED if networks is _random else 0), not_saved
