"""OnePass in loops that are unusual, or wrong: it goes on rightly, or says what is wrong."""

import copy
import sys
import types
from pathlib import Path

import pytest
import torch
from small_loops import PHASES, STEPS, batch, drive, drive_one, gated_resnet
from torch import nn
from torch.nn import functional as F

import polarprune
from polarprune.errors import ConfigError, TrainingError
from polarprune.loop_mistakes import check_finite
from polarprune.onepass import OnePass, Phases
from polarprune.optimizer_state import _sliced_state
from polarprune.runs.tensorboard_events import write_events

CUTTING = Phases(search=0.1, settle=0.8, cuts=(0.5,))


def _sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)  # type: ignore[arg-type]


def _one(gated, optimizer, **options) -> OnePass:
    return OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=PHASES, **options)


def test_what_else_the_optimizer_holds_stays_and_goes_on() -> None:
    gated = gated_resnet()
    weight = nn.Parameter(torch.ones(()))
    optimizer = _sgd([{"params": gated.parameters()}, {"params": [weight], "lr": 0.1}])
    one = _one(gated, optimizer)
    momentum = torch.tensor(0.0)
    for step in range(STEPS):
        before = weight.detach().clone()
        optimizer.zero_grad()
        x, y = batch(step)
        (weight * F.cross_entropy(one.network(x), y) + one.loss()).backward()
        assert weight.grad is not None
        momentum = 0.9 * momentum + weight.grad.clone()
        optimizer.step()
        one.step()
        torch.testing.assert_close(weight.detach(), before - 0.1 * momentum)
    assert one.settled
    assert optimizer.param_groups[1]["params"] == [weight]


def test_several_optimizers_share_a_network() -> None:
    gated = gated_resnet()
    vectors = [p for p in gated.parameters() if p.dim() == 1]
    others = [p for p in gated.parameters() if p.dim() != 1]
    optimizers = [_sgd(vectors), torch.optim.AdamW(others, lr=1e-3)]
    one = _one(gated, optimizers)
    for step in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
        x, y = batch(step)
        (F.cross_entropy(one.network(x), y) + one.loss()).backward()
        before = {name: p.detach().clone() for name, p in one.network.named_parameters()}
        for optimizer in optimizers:
            optimizer.step()
        if one.settled:
            still = [n for n, p in one.network.named_parameters() if torch.equal(p, before[n])]
            assert still == []
        one.step()
    held = [{p for g in o.param_groups for p in g["params"]} for o in optimizers]
    assert held[0] | held[1] == set(one.network.parameters())
    assert all(p.dim() == 1 for p in held[0])


def test_an_optimizer_of_the_network_before_gating_is_refused() -> None:
    one = _one(gated_resnet(), _sgd(nn.Linear(2, 2).parameters()))
    with pytest.raises(ConfigError, match=r"make it from gated\.parameters\(\)"):
        one.loss()


def test_parameters_that_were_given_by_name_keep_their_names() -> None:
    gated = gated_resnet()
    optimizer = _sgd(gated.named_parameters())
    one = _one(gated, optimizer)
    drive(one, optimizer, STEPS)
    named = dict(one.network.named_parameters())
    [group] = optimizer.param_groups
    assert len(group["params"]) == len(group["param_names"]) == len(named)
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        assert named[name] is parameter


@pytest.mark.parametrize("name", ["resnet20", "torchvision:mobilenet_v3_small"])
def test_parameters_keep_one_order_through_cut_and_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = polarprune.build_network(name, num_classes=10).train()
    gated = polarprune.attach_gates(net, torch.zeros(2, 3, 32, 32))
    optimizer = _sgd(gated.parameters())
    one = OnePass(gated, optimizer, target=0.5, total_steps=4, phases=Phases(0.2, 0.6))
    for _step in range(4):
        x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
        optimizer.zero_grad()
        (F.cross_entropy(one.network(x), y) + one.loss()).backward()
        optimizer.step()
        one.step()
    named = dict(one.network.named_parameters())
    held = optimizer.param_groups[0]["params"]
    assert all(p is q for p, q in zip(held, named.values(), strict=True))
    polarprune.save_network(one.network, tmp_path / "small")
    assert list(dict(polarprune.load_network(tmp_path / "small").named_parameters())) == list(named)


def test_a_settled_pass_is_resumed_by_torchs_own_means(tmp_path: Path) -> None:
    gated = gated_resnet()
    optimizer = _sgd(gated.parameters())
    one = _one(gated, optimizer)
    drive(one, optimizer, 7)
    assert one.settled
    polarprune.save_network(one.network, tmp_path / "small")
    saved = copy.deepcopy((one.state_dict(), optimizer.state_dict()))
    for step in (7, 8, 9):
        drive_one(one, optimizer, step)
    small = polarprune.load_network(tmp_path / "small").train()
    again = _sgd(small.parameters())
    resumed = _one(gated_resnet(), again)
    resumed.load_state_dict(saved[0], small)
    again.load_state_dict(saved[1])
    for step in (7, 8, 9):
        drive_one(resumed, again, step)
    for name, value in one.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name


@pytest.mark.parametrize("rows", [(8,), (3, 2)])
def test_state_whose_axes_are_not_the_parameters_starts_anew(rows: tuple[int, ...]) -> None:
    from polarprune.graph.cut import Origin

    old, new = nn.Parameter(torch.zeros(8, 3)), nn.Parameter(torch.zeros(5, 3))
    origin = Origin("w", {0: torch.arange(5)})
    like = {"step": torch.tensor(3.0), "row": torch.arange(8.0).unsqueeze(1)}
    sliced = _sliced_state(like, old, new, origin)
    assert sliced["row"].flatten().tolist() == [0, 1, 2, 3, 4]
    assert _sliced_state({**like, "other": torch.zeros(rows)}, old, new, origin) == {}


def test_a_search_in_evaluation_mode_is_refused() -> None:
    gated = gated_resnet().eval()
    optimizer = _sgd(gated.parameters())
    one = _one(gated, optimizer)
    with pytest.raises(TrainingError, match=r"call one\.network\.train\(\)"):
        drive(one, optimizer, STEPS)


def test_a_pass_without_gradients_before_the_gates_loss_is_refused() -> None:
    gated = gated_resnet()
    optimizer = _sgd(gated.parameters())
    one = _one(gated, optimizer)
    while not one.searching:
        drive_one(one, optimizer, one.steps)
    x, y = batch(0)
    task = F.cross_entropy(one.network(x), y)
    with torch.no_grad():
        one.network(x)
    with pytest.raises(TrainingError, match="made without gradients"):
        task + one.loss()


def test_training_what_was_cut_is_refused_and_looking_at_it_is_not() -> None:
    gated = gated_resnet()
    compiled = torch.compile(gated, backend="eager")
    optimizer = _sgd(gated.parameters())
    one = _one(gated, optimizer)
    compiled(batch(0)[0])
    drive(one, optimizer, STEPS)
    for stale in (gated, compiled):
        with pytest.raises(TrainingError, match=r"call one\.network"):
            stale(batch(0)[0])
    with torch.no_grad():
        gated(batch(0)[0])
    gated.eval()(batch(0)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_of_half_precision_under_autocast(dtype: torch.dtype) -> None:
    gated = gated_resnet()
    optimizer = _sgd(gated.parameters())
    one = OnePass(gated, optimizer, target=0.5, total_steps=STEPS, phases=CUTTING)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(one.network(x.to(dtype)), y) + one.loss()
        loss.backward()
        optimizer.step()
        one.step()
    assert one.cuts[-1].certificate["passed"]


def test_held_out_images_of_double_precision() -> None:
    gated = gated_resnet()
    optimizer = _sgd(gated.parameters())
    one = _one(gated, optimizer, held_out=batch(9)[0].double())
    drive(one, optimizer, STEPS)
    assert one.settled


def test_no_held_out_images_at_all_are_refused() -> None:
    gated = gated_resnet()
    with pytest.raises(ConfigError, match="held_out holds no image"):
        _one(gated, _sgd(gated.parameters()), held_out=batch(0)[0][:0])


def test_diverged_training_is_called_that() -> None:
    gated = gated_resnet()
    optimizer = _sgd(gated.parameters())
    one = _one(gated, optimizer)
    drive_one(one, optimizer, 0)
    with torch.no_grad():
        next(gated.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="training has diverged"):
        one.finish()
    assert not one.settled


@pytest.mark.parametrize(
    "phases", [(0.9, 0.2), (-1.0, 0.5), (0.5, 0.5), (0.1, 1.5), (float("nan"), 0.5)]
)
def test_a_search_that_is_none_is_refused(phases: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="a search begins at 0 or later"):
        Phases(*phases)


def test_a_broken_tensorboard_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> object:
        raise TypeError("Descriptors cannot be created directly.")

    broken = types.ModuleType("torch.utils.tensorboard")
    broken.__getattr__ = refuse  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", broken)
    write_events(tmp_path, {"epoch": 1, "step": 1, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_was_pruned_once_can_be_given_to_another_pass() -> None:
    gated = gated_resnet()
    for _ in range(2):
        optimizer = _sgd(gated.parameters())
        one = _one(gated, optimizer)
        drive(one, optimizer, STEPS)
        assert one.settled


def test_infinities_in_a_buffer_are_no_divergence() -> None:
    gated = gated_resnet()
    gated.body.register_buffer("mask", torch.full((2,), -torch.inf))
    check_finite(gated)


class _Wrapped:
    """An optimizer that is none of torch's classes, as some launchers hand out."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_a_wrapped_optimizer_is_cut_too() -> None:
    gated = gated_resnet()
    optimizer = _sgd(gated.parameters())
    one = _one(gated, _Wrapped(optimizer))
    drive(one, optimizer, STEPS)
    [group] = optimizer.param_groups
    assert all(p is q for p, q in zip(group["params"], one.network.parameters(), strict=True))
