"""Continuous relaxation: its losses against plain loops, and what it does in one pass."""

import copy
import math
from pathlib import Path

import pytest
import torch
from digit_runs import Killed, config, kill_in_epoch
from small_loops import batch, drive_one
from small_networks import image, small
from torch import Tensor
from torch.nn import functional as F

import polarprune
from polarprune.cut_records import agreement_of, decided_by_each
from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork
from polarprune.methods import Units, build_method
from polarprune.methods.protocol import GateRequest
from polarprune.methods.relaxation import RelaxedGate, cost_share, cubic_ramp, fence_sitter_loss
from polarprune.onepass import OnePass, Phases
from polarprune.runs.run_folder import RunFolder
from polarprune.runs.training import train


def _block(s, x: Tensor) -> Tensor:
    x = F.relu(s.stem(x))
    return s.head(F.relu(x + s.two(F.relu(s.one(x)))))


def test_the_fence_sitter_loss_is_the_mean_of_a_gaussian_over_shares() -> None:
    s, share = [-2.0, -0.5, 0.0, 0.3, 1.0], [0.4, 0.1, 0.2, 0.1, 0.2]
    w = torch.tensor([1 / (1 + math.exp(-5 * each)) for each in s])
    bumps = [math.exp(-((each / (2 * 0.2)) ** 2)) for each in s]
    expected = sum(part * bump for part, bump in zip(share, bumps, strict=True))
    assert float(fence_sitter_loss(w, torch.tensor(share))) == pytest.approx(expected, rel=1e-4)


def test_half_precision_gives_it_a_gradient_without_holes() -> None:
    s = torch.tensor([3.0, 1.0, 0.2], dtype=torch.bfloat16, requires_grad=True)
    fence_sitter_loss(torch.sigmoid(5 * s), torch.full((3,), 1 / 3)).backward()
    assert s.grad is not None
    assert bool(s.grad.isfinite().all())
    assert float(s.grad[2]) < 0


def test_a_units_share_is_what_closing_it_a_little_saves() -> None:
    gated = polarprune.attach_gates(small(_block), image(), method="relaxation")
    gated.search()
    openness, sizes = [], [site.units for site in gated.sites]
    for site in gated.sites:
        openness.append(torch.linspace(0.4, 0.9, site.units))

    def cost(values: Tensor) -> Tensor:
        stream, inner = values.split(sizes)[0].sum(), values.split(sizes)[-1].sum()
        return stream * stream + 3 * stream * inner

    flat = torch.cat(openness).requires_grad_()
    share = cost_share(cost(flat), flat)
    step = 1e-3
    saved = []
    for i in range(len(flat)):
        lower = flat.detach().clone()
        lower[i] -= step
        saved.append(float(cost(flat.detach()) - cost(lower)) / step)
    expected = torch.tensor(saved)
    torch.testing.assert_close(share, expected / expected.sum(), rtol=1e-2, atol=1e-3)
    assert not share.requires_grad


def test_where_nothing_has_a_price_all_units_weigh_alike() -> None:
    openness = torch.full((4,), 0.5, requires_grad=True)
    assert cost_share(torch.tensor(1.0), openness).tolist() == [0.25] * 4


@pytest.mark.slow
@pytest.mark.parametrize("ejector", ["gaussian", "annealed"])
def test_a_compiled_search_goes_where_an_eager_one_goes(ejector: str) -> None:
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        gated = polarprune.attach_gates(
            small(_block).float(), image().float(), method="relaxation",
            method_options={"ejector": ejector},
        ).train()  # fmt: skip
        gated.search()
        if compiled:
            torch.compiler.reset()
            gated.compile(backend="aot_eager")
        optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
        for step in range(6):
            loss = gated(image().float()).square().mean()
            ratio = gated.expected_macs_ratio()
            loss = loss + gated.method.loss(gated.units(), ratio, 0.5, 0.5 + step / 12)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append([w.detach() for w in gated.open_weights()])
    for eager, other in zip(*found, strict=True):
        torch.testing.assert_close(eager, other, rtol=1e-4, atol=1e-5)


def test_its_gradient_drives_weights_away_from_the_middle() -> None:
    w = torch.tensor([0.2, 0.8], requires_grad=True)
    fence_sitter_loss(w, torch.tensor([0.5, 0.5])).backward()
    assert w.grad is not None
    assert float(w.grad[0]) > 0 > float(w.grad[1])


@pytest.mark.parametrize("ejector", ["gaussian", "annealed"])
def test_the_threshold_rises_to_one_half(ejector: str) -> None:
    method = build_method("relaxation", {"ejector": ejector})
    [gate] = method.make_gates([GateRequest(3, 0)], 100)
    assert isinstance(gate, RelaxedGate)
    units = Units(*(torch.full((3,), value) for value in (0.9, 0.9, 1 / 3)))
    found = []
    for progress in (0.0, 0.4, 0.6, 0.8, 1.0):
        method.loss(units, torch.tensor(0.7), 0.5, progress)
        found.append(float(gate.threshold))
    assert found == pytest.approx([0.02, 0.02, 0.26, 0.5, 0.5])


def test_the_ramp_is_a_cubic_between_its_ends() -> None:
    found = [cubic_ramp(p, 0.4, 0.8) for p in (0.0, 0.4, 0.6, 0.8, 1.0)]
    assert found == pytest.approx([0, 0, 0.125, 1, 1])


@pytest.mark.parametrize(("ratio", "sign"), [(0.7, 1), (0.3, -1)])
def test_the_structure_loss_pulls_from_both_sides(ratio: float, sign: int) -> None:
    cost = torch.tensor(ratio, requires_grad=True)
    units = Units(*(torch.full((3,), value) for value in (0.9, 0.9, 1 / 3)))
    build_method("relaxation").loss(units, cost, 0.5, 1.0).backward()
    assert cost.grad is not None
    assert math.copysign(1, float(cost.grad)) == sign


def test_a_weight_below_the_threshold_is_0_and_keeps_its_gradient() -> None:
    gate = RelaxedGate(3)
    with torch.no_grad():
        gate.s.copy_(torch.tensor([-1.0, -0.5, 1.0]))
    w = torch.sigmoid(5 * gate.s.detach())
    output = gate(torch.zeros(2, 0))
    assert output.values.tolist() == [[0.0, float(w[1]), float(w[2])]]
    gate.threshold.fill_(0.5)
    assert gate(torch.zeros(2, 0)).values.tolist() == [[0.0, 0.0, float(w[2])]]
    assert torch.equal(output.probability, w)
    output.values.sum().backward()
    torch.testing.assert_close(gate.s.grad, 5 * w * (1 - w))


def test_what_has_a_weight_is_computed_however_small() -> None:
    gated = polarprune.attach_gates(small(_block), image(), method="relaxation")
    gated.search()
    with torch.no_grad():
        for gate in gated.gate_modules():
            gate.gate.s.fill_(-0.3)  # w = 0.18
            gate.gate.s[0] = -1.0  # w = 0.007, below the threshold
    for site, decided in zip(gated.sites, decided_by_each(gated, image()), strict=True):
        assert int(decided.sum()) >= site.units - 1
        assert decided.shape == (1, site.units)


def test_agreement_counts_what_the_target_closed_beyond_the_gates() -> None:
    gated = polarprune.attach_gates(small(_block), image(), method="relaxation")
    gated.search()
    decided = decided_by_each(gated, image())
    assert all(bool(own.all()) for own in decided)
    decisions = {site.name: torch.arange(site.units) > 0 for site in gated.sites}
    found = agreement_of(gated, decisions, decided)
    assert found == {site.name: 1 - 1 / site.units for site in gated.sites}


def test_the_expected_cost_is_the_relaxed_one() -> None:
    gated = polarprune.attach_gates(small(_block), image(), method="relaxation", blocks=False)
    gated.search()
    with torch.no_grad():
        for gate in gated.gate_modules():
            gate.gate.s.uniform_(-0.3, 1.0)
    gated.train()(image())
    w = {site.name: v for site, v in zip(gated.sites, gated.open_weights(), strict=True)}
    stream, inner, last = (w[name].sum() for name in ("stem", "one", "last"))
    # 8 x 8 pixels and 3 x 3 kernels; a convolution costs the sum of what it reads times the sum
    # of what it writes (paper B).
    each = 64 * 9
    expected = each * (3 * stream + stream * inner + inner * stream + stream * last) + 4 * last
    dense = each * (3 * 8 + 8 * 8 + 8 * 8 + 8 * 6) + 4 * 6
    torch.testing.assert_close(gated.expected_macs_ratio(), expected / dense)


def _pass(ejector: str, steps: int = 40, **phases: object) -> tuple[OnePass, GatedNetwork]:
    torch.manual_seed(0)
    gated = polarprune.attach_gates(
        polarprune.build_network("resnet20").train(), torch.zeros(2, 3, 8, 8),
        method="relaxation", method_options={"ejector": ejector},
    )  # fmt: skip
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.05, momentum=0.9)
    one = OnePass(
        gated, optimizer, target=0.5, total_steps=steps,
        phases=Phases(**{"search": 0.1, "settle": 0.8, **phases}),
    )  # fmt: skip
    for step in range(steps):
        drive_one(one, optimizer, step)
    return one, gated


@pytest.mark.parametrize("ejector", ["gaussian", "annealed"])
def test_one_pass_is_at_its_target_and_what_stays_has_weights_of_its_own(ejector: str) -> None:
    one, gated = _pass(ejector)
    assert 0.9 * one.budget.bound < one.macs_now <= one.budget.bound
    kept = torch.cat([
        w[gate.frozen]
        for w, gate in zip(gated.open_weights(), gated.site_gates(), strict=True)
    ])  # fmt: skip
    assert bool((kept > 0).all())
    assert bool((kept <= 1).all())
    assert len(kept.unique()) > (10 if ejector == "gaussian" else 1), "nothing was learned"
    [cut] = one.cuts
    assert cut.max_rel_error < 1e-9
    steepness = {float(gate.gate.steepness) for gate in gated.gate_modules()}
    assert steepness == ({5.0} if ejector == "gaussian" else {30.0})


def test_units_below_the_threshold_are_cut_while_training_goes_on() -> None:
    one, _ = _pass("annealed", steps=120, settle=0.95, cuts=(0.8, 0.9))
    assert len(one.cuts) > 1
    assert all(cut.max_rel_error < 1e-9 for cut in one.cuts)
    assert one.macs_now <= one.budget.bound


def test_an_average_is_folded_with_its_own_weights() -> None:
    torch.manual_seed(0)
    gated = polarprune.attach_gates(
        polarprune.build_network("resnet20").train(), torch.zeros(2, 3, 8, 8), method="relaxation"
    )
    ema = torch.optim.swa_utils.AveragedModel(gated)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.05)
    one = OnePass(
        gated, optimizer, target=0.6, total_steps=12, ema=ema, phases=Phases(search=0.1, settle=0.9)
    )
    for step in range(10):
        images, labels = batch(step)
        (F.cross_entropy(one.network(images), labels) + one.loss()).backward()
        optimizer.step()
        ema.update_parameters(one.network)
        if step == 9:
            frozen = copy.deepcopy(ema.module)
        one.step()
    one.finish()
    frozen.set_decisions(gated.decisions())
    images, _ = batch(99)
    expected, got = frozen.double().eval()(images.double()), ema.module.double().eval()
    torch.testing.assert_close(got(images.double()), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("relaxed") / "run"
    train(config(out, method="relaxation", ejector="annealed"))
    return RunFolder(out)


def test_a_run_is_at_or_under_its_target(finished: RunFolder) -> None:
    assert 0.48 < finished.result["macs_ratio"] <= 0.5
    assert 0.5 < finished.result["agreement"] <= 1.0
    assert "dynamic_top1" not in finished.result  # all images are decided alike
    assert finished.config["ejector"] == "annealed"


@pytest.mark.parametrize("epoch", [2, 3], ids=["searching", "around the cut"])
def test_a_killed_run_resumes_bit_for_bit(finished: RunFolder, tmp_path: Path, epoch: int) -> None:
    out = tmp_path / "run"
    settings = config(out, method="relaxation", ejector="annealed")
    with pytest.raises(Killed):
        train(settings, kill_in_epoch(epoch))
    train(config(out, method="relaxation", ejector="annealed", resume=True))
    expected = finished.pruned_network().state_dict()
    got = RunFolder(out).pruned_network().state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_an_unknown_ejector_is_named() -> None:
    with pytest.raises(ConfigError, match="--ejector must be one of gauss"):
        build_method("relaxation", {"ejector": "none"})
