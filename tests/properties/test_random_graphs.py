"""For random decisions on random networks: what is cut is exactly what was closed.

A few examples of each kind, always the same ones; the recorded run over thousands of seeds is
benchmarks/random_graphs.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import random_graph_checks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graph_checks import STYLES, check_network
from random_graphs import Recipe, recipes
from torch import Tensor, fx, nn

import polarprune
from polarprune.errors import ConfigError, Refused
from polarprune.gates import GatedNetwork
from polarprune.gating import BlockGate, ChannelGates

# Shares over SEEDS that keep the property from holding emptily. Refused whole are networks that
# torch.fx cannot trace (sizes unpacked by *) or that write into a view of what is read later.
SEEDS = range(40)
MOST_REFUSED, LEAST_WITH_SITES, LEAST_UNITS = 0.10, 0.70, 0.25


@pytest.mark.parametrize("style", list(STYLES))
@given(recipe=recipes())
@settings(max_examples=6)
def test_any_cut_of_any_network_is_exact(recipe: Recipe, style: str) -> None:
    check_network(recipe, (style,))


@pytest.mark.study
def test_cuts_of_a_hundred_networks_are_exact() -> None:
    for seed in range(100):
        check_network(Recipe.of_seed(seed))


@pytest.mark.parametrize("style", ["half", "anything"])
@given(recipe=recipes())
@settings(max_examples=5)
def test_weights_of_open_units_are_folded_exactly(recipe: Recipe, style: str) -> None:
    check_network(recipe, (style,), weighed=True)


@given(recipe=recipes(), target=st.sampled_from([None, 0.9, 0.6, 0.3]), spread=st.integers(0, 99))
@settings(max_examples=10)
def test_decisions_within_a_budget_leave_a_whole_network(
    recipe: Recipe, target: float | None, spread: int
) -> None:
    try:
        gated = polarprune.attach_gates(recipe.network(), recipe.image(), method="random")
    except Refused:
        return
    generator = torch.Generator().manual_seed(spread)
    for gate in gated.site_gates():  # some sites all low, some all high
        height = torch.rand(1, generator=generator)
        gate.running.copy_(height * torch.rand(len(gate.running), generator=generator))
    gated.search()
    try:
        gated.set_decisions(gated.decisions(target))
    except ConfigError:
        with pytest.raises(ConfigError, match="cannot be reached"):
            gated.check_reachable(gated.macs_budget(target or 1.0))
        return
    small = polarprune.collapse(gated)
    macs = polarprune.count_macs(small, recipe.image())
    assert macs <= (1.0 if target is None else target) * gated.circuit.dense_macs


# Each was found by the run over seeds, and shrunk.
FOUND = {
    "the parts of a split start a block": Recipe([("parts", {"use": "sum"})]),
    "a functional convolution in a branch that goes": Recipe(
        [("residual", {"body": [("conv", {"written": "parameter"})]})]
    ),
    "standardised weights in an operand that goes": Recipe(
        [("concat", {"branches": [[], [], [("conv", {"written": "standardised"})]]})]
    ),
    "padded channels that nothing writes to": Recipe([("pad_channels", {})]),
    "a depthwise convolution over padded channels": Recipe(
        [("pad_channels", {}), ("conv", {"groups": "depthwise"})]
    ),
    "a norm over channels that only a closed block wrote": Recipe(
        [
            ("block", {"style": "pre-activation", "widen": True, "shortcut": "F.pad behind"}),
            ("norm", {}),
        ]
    ),
    "slices with bounds that are computed from sizes": Recipe(
        [("conv", {}), ("parts", {"parts": "slices read", "body": []}), ("conv", {})]
    ),
}


@pytest.mark.parametrize("recipe", FOUND.values(), ids=FOUND)
def test_networks_that_were_once_cut_wrongly(recipe: Recipe) -> None:
    check_network(recipe)


def _shares() -> tuple[float, float, float]:
    """(networks refused, others with a channel site, units for an output channel of a layer)"""
    reports = [check_network(Recipe.of_seed(seed), ()) for seed in SEEDS]
    gated = [report for report in reports if report.refused is None]
    return (
        1 - len(gated) / len(reports),
        sum(report.units > 0 for report in gated) / len(reports),
        sum(report.units for report in gated) / sum(report.producers for report in reports),
    )


def _check_shares() -> None:
    refused, with_sites, units = _shares()
    assert refused <= MOST_REFUSED
    assert with_sites >= LEAST_WITH_SITES
    assert units >= LEAST_UNITS


def test_most_networks_can_be_gated() -> None:
    _check_shares()


def test_the_text_of_a_recipe_rebuilds_its_network() -> None:
    for seed in SEEDS:
        recipe = Recipe.of_seed(seed)
        assert Recipe.of_text(recipe.text()) == recipe
    first, second = (Recipe.of_text(recipe.text()).network().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# The checks can fail: each of these breaks one rule and has to be noticed.

TYPICAL = Recipe(
    blocks=[
        ("block", {}),
        ("conv", {"groups": "depthwise"}),
        ("residual", {"body": [("activation", {})], "after": "ReLU"}),
        ("conv", {}),
        ("norm", {}),
    ]
)
noticed = pytest.raises((AssertionError, RuntimeError))


def test_the_typical_network_passes() -> None:
    report = check_network(TYPICAL)
    assert report.refused is None
    assert report.not_saved is None
    assert min(report.shares) < 0.5


def _after(true: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function that changes what the true one gave."""
    return lambda *args, **kwargs: change(true(*args, **kwargs))


def _nudge(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(net.parameters()).add_(1e-6)
    return net


def _insert(method: str, *args: Any) -> Callable[[fx.GraphModule], fx.GraphModule]:
    def insert(net: fx.GraphModule) -> fx.GraphModule:
        image = next(iter(net.graph.nodes))
        with net.graph.inserting_after(image):
            result = net.graph.call_method(method, (image, *args))
        image.replace_all_uses_with(result, delete_user_cb=lambda user: user is not result)
        net.recompile()
        return net

    return insert


@pytest.mark.parametrize("name", ["collapse", "load_network", "attach_gates"])
def test_another_weight_would_be_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(polarprune, name, _after(getattr(polarprune, name), _nudge))
    with noticed:
        check_network(TYPICAL)


@pytest.mark.parametrize("attribute", ["momentum", "eps"])
def test_another_normalisation_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, attribute: str
) -> None:
    def change(found: Any) -> Any:
        net = found[0] if isinstance(found, tuple) else found
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                setattr(module, attribute, 1.01 * getattr(module, attribute))
        return found

    # Momentum shows only in the statistics, which the second of the two is asked for.
    for owner, name in ((polarprune, "collapse"), (random_graph_checks, "collapse_with_origins")):
        monkeypatch.setattr(owner, name, _after(getattr(owner, name), change))
    with noticed:
        check_network(TYPICAL)


@pytest.mark.parametrize("gate", [ChannelGates, BlockGate])
def test_a_gate_that_does_not_close_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, gate: type[nn.Module]
) -> None:
    monkeypatch.setattr(gate, "forward", lambda self, x, *gates: x)
    with noticed:
        check_network(TYPICAL)


@pytest.mark.parametrize(
    "change", [_insert("reshape", (2, 3, 8, 8)), _insert("narrow", 2, 0, 8)], ids=["batch", "size"]
)
def test_a_size_that_got_fixed_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> None:
    monkeypatch.setattr(polarprune, "collapse", _after(polarprune.collapse, change))
    with noticed:
        check_network(TYPICAL)


def test_a_second_collapse_that_changes_something_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = polarprune.collapse

    def collapse(net: nn.Module) -> nn.Module:
        small = true(net)
        return small if isinstance(net, GatedNetwork) else _insert("clone")(small)

    monkeypatch.setattr(polarprune, "collapse", collapse)
    with noticed:
        check_network(TYPICAL)


@pytest.mark.parametrize("count", ["macs_of", "counted_macs"])
def test_a_wrong_count_would_be_noticed(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    true = getattr(random_graph_checks, count)
    monkeypatch.setattr(random_graph_checks, count, _after(true, lambda macs: macs + 1))
    with noticed:
        check_network(TYPICAL)


@pytest.mark.parametrize("message", ["something is starved", "site 'stem' is starved"])
def test_decisions_refused_without_help_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def refuse(self: GatedNetwork, decisions: dict[str, Tensor]) -> None:
        raise ValueError(message)

    monkeypatch.setattr(GatedNetwork, "set_decisions", refuse)
    with noticed:
        check_network(TYPICAL)


def test_a_core_that_refuses_everything_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise Refused("no")

    monkeypatch.setattr(polarprune, "attach_gates", refuse)
    with noticed:
        _check_shares()


def test_a_core_that_gates_nothing_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    true = polarprune.attach_gates
    monkeypatch.setattr(polarprune, "attach_gates", lambda net, x: true(net, x, channels=False))
    with noticed:
        _check_shares()
