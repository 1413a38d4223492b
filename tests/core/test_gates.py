"""A network with gates: open, searching, frozen; consensus and the random control."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_networks import all_open, check_exact, image, small
from torch import Tensor

import polarprune
from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork
from polarprune.graph.cost import count_parameters
from polarprune.methods.consensus import budget_loss, polarization_loss


def _block(s, x: Tensor) -> Tensor:
    x = F.relu(s.stem(x))
    return s.head(F.relu(x + s.two(F.relu(s.norm(s.one(x))))))


def gated_block(method: str = "consensus", **options: object) -> GatedNetwork:
    return polarprune.attach_gates(small(_block), image(), method=method, **options)


@pytest.mark.parametrize("method", ["consensus", "random"])
def test_open_gates_change_no_bit(method: str) -> None:
    gated = gated_block(method)
    net = small(_block)
    assert torch.equal(gated.eval()(image()), net.eval()(image()))


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("channels", [True, False])
def test_only_the_kinds_that_were_asked_for(blocks: bool, channels: bool) -> None:
    gated = check_exact(small(_block), blocks=blocks, channels=channels)
    kinds = {site.kind for site in gated.sites}
    assert ("block" in kinds, "channel" in kinds) == (blocks, channels)


def test_an_unknown_method_and_a_bad_alignment_are_one_line() -> None:
    for options in ({"method": "magic"}, {"align": 0}):
        with pytest.raises(ConfigError) as caught:
            polarprune.attach_gates(small(_block), image(), **options)
        assert "\n" not in str(caught.value)


def test_searching_gates_decide_in_zeros_and_ones_and_pass_a_gradient() -> None:
    gated = gated_block().train()
    gated.search()
    gated(image()).square().mean().backward()
    for output in gated.outputs():
        assert bool(((output.values == 0) | (output.values == 1)).all())
        assert output.values.shape[0] == 2
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in gated.parameters())
    assert any(float(p.grad.abs().max()) > 0 for p in gated.gate_parameters())
    assert float(gated.expected_macs_ratio().detach()) == pytest.approx(1.0)


def test_a_gate_watches_the_network_without_steering_it() -> None:
    gated = gated_block().train()
    gated.search()
    gated(image())
    gated.expected_macs_ratio().backward()
    own = {id(p) for p in gated.gate_parameters()}
    assert all(p.grad is None for p in gated.parameters() if id(p) not in own)


def test_gates_are_small_beside_the_network() -> None:
    net = polarprune.build_network("resnet20")
    gated = polarprune.attach_gates(net, torch.zeros(1, 3, 32, 32))
    own = sum(p.numel() for p in gated.gate_parameters())
    assert own < 0.05 * count_parameters(net)
    assert gated.gate_macs() < 0.01 * gated.circuit.dense_macs


def test_a_search_that_agrees_computes_what_freezing_gives() -> None:
    gated = gated_block().eval()
    decisions = all_open(gated, stem=[0, 3])
    gated.set_decisions(decisions)
    frozen = gated(image())
    gated.search()
    for site, gate in zip(gated.sites, gated.site_gates(), strict=True):
        with torch.no_grad():
            logit = gate.source.gate.logit
            logit.weight[gate.units] = 0
            logit.bias[gate.units] = torch.where(decisions[site.name], 5.0, -5.0).to(logit.bias)
    torch.testing.assert_close(gated(image()), frozen, rtol=1e-12, atol=1e-12)


def test_the_running_probability_moves_in_training_only() -> None:
    gated = gated_block().eval()
    gated.search()
    before = [gate.running.clone() for gate in gated.site_gates()]
    gated(image())
    assert all(torch.equal(b, g.running) for b, g in zip(before, gated.site_gates(), strict=True))
    gated.train()(image())
    assert not all(
        torch.equal(b, g.running) for b, g in zip(before, gated.site_gates(), strict=True)
    )


def test_a_gated_network_can_be_copied_after_a_search_step() -> None:
    gated = gated_block().train()
    gated.search()
    gated(image())
    twin = copy.deepcopy(gated)
    assert torch.equal(twin.eval()(image()), gated.eval()(image()))


def test_random_scores_differ_by_seed_and_repeat_with_it() -> None:
    scores = []
    for seed in (1, 1, 2):
        net = small(_block)
        torch.manual_seed(seed)
        gated = polarprune.attach_gates(net, image(), method="random")
        gated.search()
        gated.train()(image())
        scores.append(torch.cat([output.probability for output in gated.outputs()]))
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_polarization_is_zero_only_in_agreement() -> None:
    assert float(polarization_loss(torch.tensor([0.0, 1.0, 1.0]), torch.full((3,), 1 / 3))) == 0
    assert float(polarization_loss(torch.tensor([0.5]), torch.full((1,), 1 / 1))) == 1
    assert float(polarization_loss(torch.tensor([0.0, 0.9]), torch.full((2,), 1 / 2))) > 0


def test_the_budget_costs_nothing_at_or_under_the_aim() -> None:
    ratio = torch.tensor(0.5, requires_grad=True)
    assert float(budget_loss(ratio, 0.5, 1.0).detach()) == 0
    assert float(budget_loss(ratio, 0.6, 1.0).detach()) == 0
    budget_loss(ratio, 0.4, 0.5).backward()
    assert float(ratio.grad) > 0
