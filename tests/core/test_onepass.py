"""OnePass inside a foreign loop: phases, the bound, the optimizer's state, accounting."""

import copy
from collections.abc import Callable

import pytest
import torch
from small_loops import PHASES, STEPS, batch, drive, drive_one, gated_resnet
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import polarprune
from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork
from polarprune.onepass import OnePass

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_four_lines_prune_a_network_to_at_most_its_target(name: str) -> None:
    gated = gated_resnet()
    optimizer = OPTIMIZERS[name](gated.parameters())
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES)
    drive(one, optimizer, STEPS)
    net = one.finish()
    macs = polarprune.count_macs(net, torch.zeros(1, 3, 8, 8))
    assert macs <= 0.5 * gated.circuit.dense_macs
    assert macs == one.cuts[0].macs_after
    assert not any("gating" in n for n, _ in net.named_modules())
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(net.parameters())
    for parameter, state in optimizer.state.items():
        full = [v for v in state.values() if torch.is_tensor(v) and v.dim() == parameter.dim()]
        for value in full:
            assert all(a in (b, 1) for a, b in zip(value.shape, parameter.shape, strict=True))


def test_momentum_is_cut_along_with_its_parameter() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES)
    drive(one, optimizer, 5)
    momentum = {
        name: optimizer.state[p]["momentum_buffer"].clone()
        for name, p in gated.body.named_parameters()
        if p in optimizer.state
    }
    weights = {name: p.detach().clone() for name, p in gated.body.named_parameters()}
    record = one._settle()
    assert record is not None
    found = 0
    for name, parameter in one.network.named_parameters():
        buffer = optimizer.state[parameter]["momentum_buffer"]
        assert buffer.shape == parameter.shape
        if parameter.dim() > 1 or len(weights[name].unique()) < len(weights[name]):
            continue
        # Kept rows are found by their values, independently of the cut's own map.
        rows = torch.cat([torch.where(weights[name] == value)[0] for value in parameter])
        assert torch.equal(buffer, momentum[name][rows])
        found += len(rows) < len(weights[name])
    assert found > 3, "no norm was cut, so nothing was tested"


def test_training_goes_on_as_if_the_small_network_had_been_trained_alone() -> None:
    """After the cut: same losses as a twin that starts from the cut weights and momentum."""
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES)
    drive(one, optimizer, 6)
    assert one.settled
    twin = copy.deepcopy(one.network)
    other = torch.optim.SGD(twin.parameters(), lr=0.01, momentum=0.9)
    for mine, theirs in zip(one.network.parameters(), twin.parameters(), strict=True):
        other.state[theirs] = {"momentum_buffer": optimizer.state[mine]["momentum_buffer"].clone()}
    for step in range(3):
        images, labels = batch(100 + step)
        for net, opt in ((one.network, optimizer), (twin, other)):
            opt.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            opt.step()
    for mine, theirs in zip(one.network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_phases_follow_the_stated_fractions() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES)
    seen = []
    for step in range(STEPS):
        seen.append("settled" if one.settled else "search" if one.searching else "open")
        drive_one(one, optimizer, step)
    assert seen == ["open"] * 2 + ["search"] * 4 + ["settled"] * 4


def test_spent_macs_are_those_of_each_step_gates_included() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES)
    drive(one, optimizer, STEPS)
    dense, small = gated.circuit.dense_macs, one.cuts[0].macs_after
    spent = 2 * dense + 4 * (dense + gated.gate_macs()) + 4 * small
    assert one.train_macs_ratio == pytest.approx(spent / (STEPS * dense), rel=1e-12)


def test_finish_settles_a_loop_that_was_cut_short() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    one = OnePass(gated, optimizer, target=0.4, total_steps=1000)
    drive(one, optimizer, 2)
    net = one.finish()
    macs = polarprune.count_macs(net, torch.zeros(1, 3, 8, 8))
    assert macs <= 0.4 * gated.circuit.dense_macs
    assert one.finish() is net


def test_the_measure_is_called_before_and_after_the_cut() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    calls: list[nn.Module] = []

    def measure(net: nn.Module) -> float:
        calls.append(net)
        return float(len(calls))

    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES, measure=measure)
    drive(one, optimizer, STEPS)
    assert (one.cuts[0].metric_before, one.cuts[0].metric_after) == (1.0, 2.0)
    assert calls == [gated, one.network]


def test_gate_parameters_leave_the_callers_optimizer_and_still_learn() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.0)
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES)
    gates = set(gated.gate_parameters())
    assert not gates & {p for group in optimizer.param_groups for p in group["params"]}
    before = [p.detach().clone() for p in gated.gate_parameters()]
    drive(one, optimizer, 5)
    after = list(gated.gate_parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("target", [0.0, -1.0, 1.5, float("nan")])
def test_a_target_out_of_range_is_refused(target: float) -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    with pytest.raises(ConfigError, match="--target"):
        OnePass(gated, optimizer, target=target, total_steps=STEPS)


def test_an_unreachable_target_says_what_can_be_reached() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    with pytest.raises(ConfigError, match=r"smallest network .* keeps 0\.\d{4} of the MACs"):
        OnePass(gated, optimizer, target=1e-5, total_steps=STEPS)


def test_lbfgs_is_refused() -> None:
    gated = gated_resnet()
    with pytest.raises(ValueError, match="LBFGS"):
        OnePass(gated, torch.optim.LBFGS(gated.parameters()), target=0.5, total_steps=STEPS)


class _Mirrored(nn.Module):
    """A weight that is computed from a parameter of another shape."""

    def forward(self, half: torch.Tensor) -> torch.Tensor:
        return torch.cat([half, -half])

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight[: len(weight) // 2]


class _TwoBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = x + self.one(x)
        return self.head((x + self.two(x)).mean((2, 3)))


def _share(net: _TwoBlocks) -> None:
    net.two.weight = net.one.weight


def _mirror(net: _TwoBlocks) -> None:
    parametrize.register_parametrization(net.one, "weight", _Mirrored())


def _standardise(net: _TwoBlocks) -> None:
    parametrizations.weight_norm(net.one)


@pytest.mark.parametrize("closed", ["add", "add_1", "stem"])
@pytest.mark.parametrize("prepare", [_share, _mirror, _standardise])
def test_the_optimizer_gets_every_parameter_that_is_left(
    prepare: Callable[[_TwoBlocks], None], closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = _TwoBlocks()
    prepare(net)
    gated = polarprune.attach_gates(net, batch(0)[0])
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    one = OnePass(gated, optimizer, target=1.0, total_steps=STEPS, phases=PHASES)
    decisions = {s.name: torch.arange(s.units) > 0 for s in gated.sites if s.name == closed}
    gated.set_decisions(decisions)
    monkeypatch.setattr(gated, "decisions", lambda target=None: GatedNetwork.decisions(gated))
    images, _ = batch(0)
    one.network(images).square().mean().backward()
    optimizer.step()
    one._settle()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == set(one.network.parameters())
    for parameter, state in optimizer.state.items():
        assert state["momentum_buffer"].shape == parameter.shape
    weight = one.network.get_submodule("one").weight if hasattr(one.network, "one") else None
    if weight is not None:
        assert (weight in optimizer.state) == (prepare is _share), "momentum of another quantity"


class _OneWeightStandardisedTwice(_TwoBlocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for layer in (self.one, self.two):
            weight = self.one.weight
            weight = weight - weight.mean((1, 2, 3), keepdim=True)
            x = F.relu(F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), layer.bias, 1, 1))
        return self.head(x.mean((2, 3)))


def test_two_weights_computed_from_one_parameter_are_both_trained_on() -> None:
    gated = polarprune.attach_gates(_OneWeightStandardisedTwice(), batch(0)[0])
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    one = OnePass(gated, optimizer, target=1.0, total_steps=STEPS, phases=PHASES)
    drive(one, optimizer, STEPS)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == set(one.finish().parameters())
