"""Deciding alike for a whole batch: masked weights compute what masked activations do.

The slow reference multiplies activations: the same gated network with its readers told that they
cannot mask.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_networks import image, small
from torch import nn

import polarprune
from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork
from polarprune.gating import ChannelGates, MaskedReader
from polarprune.onepass import OnePass, Phases


def _block(s, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(s.stem(x))
    return s.head(F.relu(x + s.two(F.relu(s.one(x)))))


def _searching(net: nn.Module, example: torch.Tensor) -> GatedNetwork:
    torch.manual_seed(0)
    gated = polarprune.attach_gates(net, example)
    for module in gated.gate_modules():  # some open, some closed, some undecided
        nn.init.normal_(module.gate.logit.bias, std=2.0)
        nn.init.normal_(module.gate.logit.weight, std=1.0)
    gated.search()
    gated.state.alike = True
    return gated.train()


def _multiplying(gated: GatedNetwork) -> GatedNetwork:
    """The same values, multiplied into activations."""
    slow = copy.deepcopy(gated)
    readers = 0
    for module in slow.body.modules():
        if isinstance(module, ChannelGates):
            module.masked = False
        if isinstance(module, MaskedReader):
            [layer] = module._layer
            module.forward = lambda x, *gates, layer=layer: layer(x)  # type: ignore[method-assign]
            readers += 1
    assert readers, "nothing masks, so nothing is tested"
    return slow


NETWORKS = {
    "residual": lambda: (small(_block), image()),
    "resnet20": lambda: (
        polarprune.build_network("resnet20").double(), torch.randn(3, 3, 16, 16).double()
    ),
    "vgg": lambda: (
        polarprune.build_network("vgg16_bn").double(), torch.randn(2, 3, 32, 32).double()
    ),
    "mobilenet": lambda: (
        polarprune.build_network("torchvision:mobilenet_v2").double(),
        torch.randn(2, 3, 32, 32).double(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_masked_weights_compute_and_teach_what_masked_activations_do(make) -> None:
    torch.manual_seed(1)
    net, x = make()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fast = _searching(net, x)
    slow = _multiplying(fast)
    for one in (fast, slow):
        torch.manual_seed(2)
        (one(x).square().mean() + one.expected_macs_ratio()).backward()
    torch.testing.assert_close(fast(x), slow(x), rtol=1e-8, atol=1e-10)
    expected = dict(slow.named_parameters())
    compared = 0
    for name, parameter in fast.named_parameters():
        theirs = expected[name].grad
        assert (parameter.grad is None) == (theirs is None), name
        if theirs is not None:
            torch.testing.assert_close(parameter.grad, theirs, rtol=1e-6, atol=1e-9, msg=name)
            compared += 1
    assert compared > 5


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_hooks_on_layers_are_called_and_see_gated_activations(make) -> None:
    torch.manual_seed(1)
    net, x = make()
    fast = _searching(net.eval(), x)
    slow = _multiplying(fast)
    seen: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for one, values in zip((fast, slow), seen, strict=True):
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda *args, to=values: to.append(args[2].detach()))
        one(x)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in fast.modules())
    assert len(seen[0]) == len(seen[1]) == convolutions
    for mine, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


def test_all_images_take_the_decision_of_the_batch() -> None:
    gated = _searching(small(_block), image())
    module = gated.gate_modules()[0]
    taken = module(torch.randn(4, module.gate.hidden.in_features, dtype=torch.float64))
    assert taken.shape == (1, len(module.running))
    assert torch.equal(taken[0] > 0.5, module.output.probability > 0.5)
    assert module.output.values.shape[0] == 4, "what each image would have is known still"
    gated.eval()
    each = module(torch.randn(4, module.gate.hidden.in_features, dtype=torch.float64))
    assert each.shape[0] == 4, "alike in training only"


def test_a_readers_layer_is_listed_once_and_copied_with_the_network() -> None:
    gated = _searching(small(_block), image())
    names = [name for name, _ in gated.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names))
    assert not any("reader" in name for name in names)
    twin = copy.deepcopy(gated)
    for module in twin.body.modules():
        if isinstance(module, MaskedReader):
            assert module._layer[0] in set(twin.body.modules())
            assert module._layer[0] not in set(gated.body.modules())


@pytest.mark.parametrize("every", [1, 3])
def test_one_pass_lets_images_decide_for_themselves_in_one_of_so_many_steps(every: int) -> None:
    gated = polarprune.attach_gates(small(_block), image())
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    one = OnePass(
        gated, optimizer, target=0.9, total_steps=20, individual_every=every,
        phases=Phases(search=0.1, settle=0.7),
    )  # fmt: skip
    rows = []
    for _ in range(14):
        searching, steps = one.searching, one.steps
        loss = one.network(image()).square().mean() + one.loss()
        optimizer.zero_grad()
        loss.backward()
        if searching:
            rows.append((steps, gated.state.alike))
        optimizer.step()
        one.step()
    assert len(rows) == 12
    assert all(alike == (steps % every != 0) for steps, alike in rows)


def test_fewer_than_every_step_is_refused() -> None:
    gated = polarprune.attach_gates(small(_block), image())
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    with pytest.raises(ConfigError, match="individual_every must be at least 1, got 0"):
        OnePass(gated, optimizer, target=0.9, total_steps=20, individual_every=0)


def test_gates_whose_probability_is_no_decision_are_asked_in_every_step() -> None:
    gated = polarprune.attach_gates(small(_block), image(), method="random")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    one = OnePass(gated, optimizer, target=0.5, total_steps=20, phases=Phases(0.1, 0.7))
    for _ in range(10):
        (one.network(image()).square().mean() + one.loss()).backward()
        if one.searching:
            assert bool((gated.units().openness == 1).all())
            assert not gated.state.alike
        one.step()
    assert one.searching
