"""OnePass in other people's loops: optimizers, EMA, loss scaling, clipping, compile, outputs."""

import copy
import threading

import pytest
import torch
from small_loops import PHASES, STEPS, batch, drive, drive_one, gated_resnet
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import polarprune
from polarprune.errors import ConfigError
from polarprune.onepass import OnePass, Phases

CUTTING = Phases(search=0.1, settle=0.8, cuts=(0.5,))

# Every optimizer that torch ships, but L-BFGS (refused) and SparseAdam (for sparse gradients).
NAMES = [
    name
    for name in sorted(torch.optim.__dict__)
    if isinstance(getattr(torch.optim, name), type)
    and issubclass(getattr(torch.optim, name), torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
]


def _make(name: str, net: nn.Module) -> torch.optim.Optimizer:
    # Muon takes matrices alone.
    parameters = [p for p in net.parameters() if name != "Muon" or p.dim() == 2]
    return getattr(torch.optim, name)(parameters, lr=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_that_torch_ships_goes_on_with_the_small_network(name: str) -> None:
    gated = gated_resnet()
    optimizer = _make(name, gated)
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES)
    drive(one, optimizer, STEPS)
    assert one.settled
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held <= set(one.network.parameters())
    assert name == "Muon" or held == set(one.network.parameters())
    assert all(bool(p.isfinite().all()) for p in one.network.parameters())


def test_the_list_of_optimizers_is_not_empty() -> None:
    assert {"SGD", "AdamW", "Adafactor", "RMSprop", "Rprop", "ASGD"} <= set(NAMES)


def _averaged(net: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _drive_with_average(decay: float, phases: Phases):
    gated = gated_resnet()
    ema = _averaged(gated, decay)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=phases, ema=ema)
    for step in range(STEPS):
        drive_one(one, optimizer, step)
        ema.update_parameters(one.network)
    return one, ema


def test_an_average_that_forgets_at_once_is_the_small_network() -> None:
    one, ema = _drive_with_average(0.0, CUTTING)
    ours, theirs = one.network.state_dict(), ema.module.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-6, atol=1e-7)


def test_an_average_is_cut_like_the_network_it_averages() -> None:
    gated = gated_resnet()
    ema = _averaged(gated, 0.5)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES, ema=ema)
    for step in range(STEPS):
        before = copy.deepcopy(ema.module)
        drive_one(one, optimizer, step)
        if one.settled:
            break
        ema.update_parameters(one.network)
    # The slow reference: freeze the average as the network was frozen, and compare outputs.
    assert isinstance(before, polarprune.GatedNetwork)
    before.set_decisions(gated.decisions())
    images = batch(99)[0].double()
    with torch.no_grad():
        expected = before.double().eval()(images)
        got = copy.deepcopy(ema.module).double().eval()(images)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    different = [
        name
        for name, value in ema.module.named_parameters()
        if not torch.equal(value, dict(one.network.named_parameters())[name])
    ]
    assert different, "the average is the network itself, so nothing is tested"


def test_an_average_of_something_else_is_refused() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    with pytest.raises(ConfigError, match=r"ema.module is a Linear; average the gated network"):
        OnePass(gated, optimizer, target=0.5, total_steps=9, ema=_averaged(nn.Linear(1, 1), 0.5))


def _scaled(scale: float) -> dict[str, torch.Tensor]:
    """Six steps of a search with a loss that is scaled by so much."""
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    one = OnePass(
        gated, optimizer, target=0.5, total_steps=20, phases=Phases(search=0.0, settle=0.9),
        scaler=scaler,
    )  # fmt: skip
    for step in range(6):
        images, labels = batch(step)
        loss = F.cross_entropy(one.network(images), labels) + one.loss()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(held, 1.0)
        scaler.step(optimizer)
        scaler.update()
        one.step()
    return {name: p.detach().clone() for name, p in gated.named_parameters()}


def test_a_scaled_loss_trains_gates_and_weights_as_an_unscaled_one_does() -> None:
    plain, scaled = _scaled(1.0), _scaled(1024.0)
    for name in plain:
        torch.testing.assert_close(scaled[name], plain[name], rtol=1e-3, atol=1e-5, msg=name)


class TwoHeads(nn.Module):
    """Several outputs, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.classes = nn.Linear(16, 10)
        self.side = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.body(F.relu(self.stem(x)))
        return {"logits": self.classes(x.mean((2, 3))), "map": self.side(x)}


def test_several_outputs_and_a_loss_of_ones_own() -> None:
    torch.manual_seed(0)
    gated = polarprune.attach_gates(TwoHeads().train(), torch.zeros(2, 3, 8, 8))
    optimizer = torch.optim.AdamW(gated.parameters(), lr=1e-3)
    one = OnePass(gated, optimizer, target=0.4, total_steps=STEPS, phases=PHASES)
    for step in range(STEPS):
        images, labels = batch(step)
        outputs = one.network(images)
        focal = (1 - F.softmax(outputs["logits"], 1).gather(1, labels[:, None])).square()
        loss = focal.squeeze(1) * F.cross_entropy(outputs["logits"], labels, reduction="none")
        total = loss.mean() + outputs["map"].abs().mean() + one.loss()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        one.step()
    net = one.finish()
    assert set(net(batch(0)[0])) == {"logits", "map"}
    assert polarprune.count_macs(net, torch.zeros(1, 3, 8, 8)) <= 0.4 * one.dense_macs
    assert one.cuts[-1].certificate["passed"]


@pytest.mark.slow
def test_a_compiled_search_is_the_eager_one() -> None:
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        gated = gated_resnet()
        if compiled:
            gated.compile(backend="aot_eager")
        optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
        one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=CUTTING)
        for step in range(6):
            drive_one(one, optimizer, step)
        assert one.searching
        results.append({name: p.detach().clone() for name, p in gated.named_parameters()})
    eager, other = results
    for name in eager:
        torch.testing.assert_close(other[name], eager[name], rtol=1e-3, atol=1e-4, msg=name)


class _Trainer:
    """Something that cannot be copied, as loaders and files cannot."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0

    def validate(self, net: nn.Module) -> float:
        self.calls += 1
        return 0.5


def test_what_the_caller_hands_over_is_not_copied_with_the_gated_network() -> None:
    gated, trainer = gated_resnet(), _Trainer()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    one = OnePass(
        gated, optimizer, target=0.5, total_steps=STEPS, phases=CUTTING, scaler=scaler,
        measure=trainer.validate,
    )  # fmt: skip
    for step in range(STEPS):
        images, labels = batch(step)
        loss = F.cross_entropy(one.network(images), labels) + one.loss()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        one.step()  # before update(): the scaler must not be copied with what it has noted
        scaler.update()
    assert one.settled
    assert trainer.calls >= 2


def test_images_may_be_given_by_name() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES)
    for step in range(STEPS):
        images, labels = batch(step)
        loss = F.cross_entropy(one.network(x=images), labels) + one.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        one.step()
    assert one.cuts[-1].certificate["inputs"] == "real"


def test_gates_that_search_from_the_first_step_are_counted_from_there() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=Phases(0.0, 0.6))
    assert one.searching
    assert one.macs_now == one.dense_macs + gated.gate_macs()
    drive_one(one, optimizer, 0)
    assert one.train_macs_ratio > 1


def test_a_cut_that_falls_on_the_end_of_the_search_is_refused() -> None:
    gated = gated_resnet()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    with pytest.raises(ConfigError, match="with 10 steps a cut falls on step 6"):
        OnePass(
            gated, optimizer, target=0.5, total_steps=10,
            phases=Phases(0.2, 0.69, cuts=(0.65,)),
        )  # fmt: skip
