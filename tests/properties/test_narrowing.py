"""A network cut while its gates go on searching is the frozen one, and can be cut again."""

import contextlib
import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from random_graph_checks import outputs_of, worst_error
from random_graphs import Recipe, recipes
from reference import randomise
from torch import Tensor, nn

import polarprune
from polarprune.decisions import macs_of
from polarprune.errors import Refused
from polarprune.gates import GatedNetwork

EXACT = 1e-9
STEPS = 2


def some(gated: GatedNetwork, generator: torch.Generator) -> dict[str, Tensor]:
    """Of what is left about a quarter less, of a channel site at least one unit."""
    wanted = {}
    for site in gated.sites:
        there = ~gated.gone()[site.name]
        kept = there & (torch.rand(site.units, generator=generator) > 0.25)
        wanted[site.name] = kept if site.kind == "block" or kept.any() else there
    return wanted


def check_narrowed(net: nn.Module, x: Tensor, seed: int) -> int:
    """How many cuts were made, each compared with the whole network frozen alike.

    Args:
        x: several images: a norm of features needs two in training mode.
    """
    gated = polarprune.attach_gates(net, x)
    whole = copy.deepcopy(gated)
    generator = torch.Generator().manual_seed(seed)
    cuts = 0
    for _ in range(STEPS):
        wanted = some(gated, generator)
        try:
            whole.set_decisions(wanted)
        except ValueError:
            continue  # they would leave something without input
        gated.search()
        before = gated.state_dict()
        try:
            gated.narrow(wanted, x)
        except Refused:
            assert gated.state_dict().keys() == before.keys()
            return cuts
        cuts += 1
        check_same(gated, whole, x)
        check_search(gated, x)
        check_final(gated, whole, x)
    return cuts


def check_same(gated: GatedNetwork, whole: GatedNetwork, x: Tensor) -> None:
    """In both modes, with the gates that are left open or frozen open."""
    for training in (False, True):
        expected = outputs_of(copy.deepcopy(whole), x, training)
        for mode in ("open", "frozen"):
            left = copy.deepcopy(gated)
            left.set_decisions({}) if mode == "frozen" else left.open()
            assert worst_error(expected, outputs_of(left, x, training)) <= EXACT


def check_search(gated: GatedNetwork, x: Tensor) -> None:
    """Gates go on, and what is gone stays closed."""
    searching = copy.deepcopy(gated).train()
    searching.search()
    searching(x)
    for site, output in zip(searching.sites, searching.outputs(), strict=True):
        gone = gated.gone()[site.name]
        assert not output.values[:, gone].any()
        assert not output.probability[gone].any()
    if gated.circuit.dense_macs:
        assert 0 <= searching.expected_macs_ratio().item() <= 1


def check_final(gated: GatedNetwork, whole: GatedNetwork, x: Tensor) -> None:
    """Cut in steps or at once: the same network, bit for bit, at the cost that was counted."""
    at_once, in_steps = polarprune.collapse(whole), polarprune.collapse(frozen_open(gated))
    expected, got = at_once.state_dict(), in_steps.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    left = [~gone for gone in gated.gone().values()]
    assert polarprune.count_macs(in_steps, x) == macs_of(gated.circuit, left)


def frozen_open(gated: GatedNetwork) -> GatedNetwork:
    frozen = copy.deepcopy(gated)
    frozen.set_decisions({})
    return frozen


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: polarprune.build_network("resnet20"),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 3, 2), 16, num_classes=10),
    "skresnet18": lambda: timm.create_model("skresnet18", num_classes=10),
}


STUDIES = ("shufflenet", "skresnet18")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.study) if n in STUDIES else n for n in NETWORKS]
)
def test_networks_can_be_cut_step_by_step(name: str) -> None:
    torch.manual_seed(0)
    net = randomise(NETWORKS[name]()).double().eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=generator)
    assert check_narrowed(net, x, seed=0) == STEPS


@given(recipe=recipes())
@settings(max_examples=6)
def test_random_networks_can_be_cut_step_by_step(recipe: Recipe) -> None:
    with contextlib.suppress(Refused):  # as a whole: no gates can be attached
        check_narrowed(recipe.network(), recipe.image(3), recipe.seed)
