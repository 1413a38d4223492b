"""Cuts while training goes on: who goes, when, and what stays as it was."""

import copy
from pathlib import Path

import pytest
import torch
from reference import largest_relative_error
from small_networks import EXACT, all_open, image, small
from torch import Tensor, nn
from torch.nn import functional as F

import polarprune
from polarprune.budget import Budget
from polarprune.cutting import ClosedFor, CutRule, choose_cut
from polarprune.decisions import macs_of
from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork
from polarprune.onepass import OnePass, Phases

STEPS = 40
PHASES = Phases(search=0.1, settle=0.9, cuts=(0.5, 0.7))
RULE = CutRule(patience=0.2, least_steps=1)


def test_a_unit_counts_while_it_is_closed_for_all_and_starts_anew_when_it_opens() -> None:
    closed_for = ClosedFor([3], reopened=0.05)
    for opened in ((0.0, 0.0, 0.0), (0.0, 0.05, 0.06), (0.0, 0.0, 0.0)):
        closed_for.see(torch.tensor(opened))
    assert closed_for.by_site()[0].tolist() == [3, 2, 1]


def test_the_wait_is_a_share_of_all_steps_and_never_short() -> None:
    assert CutRule(patience=0.02).steps(5000) == 100
    assert CutRule(patience=0.02).steps(50) == 10


def compute(s, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(s.stem(x))
    return s.head(x + s.two(F.relu(s.one(x))))


def gated_small(align: int = 1) -> GatedNetwork:
    return polarprune.attach_gates(small(compute).float(), image().float(), align=align)


def close(gated: GatedNetwork, site: str, units: list[int], logit: float = -9.0) -> None:
    """Let a site's gate say so for every input."""
    place = [s.name for s in gated.sites].index(site)
    site_gate = gated.site_gates()[place]
    logits = site_gate.source.gate.logit
    with torch.no_grad():
        logits.weight[site_gate.units][units] = 0
        logits.bias[site_gate.units][units] = logit


def _free(gated: GatedNetwork, bound: float = 1.0) -> Budget:
    """A bound of so many MACs."""
    return gated.macs_budget(bound / gated.circuit.dense_macs)


def waited(gated: GatedNetwork, closed: dict[str, list[int]]) -> ClosedFor:
    counts = ClosedFor([site.units for site in gated.sites], 0.05)
    start = 0
    for site, gate in zip(gated.sites, gated.site_gates(), strict=True):
        for unit in closed.get(site.name, []):
            counts.steps[start + unit] = 5
            gate.running[unit] = 0.01
        start += site.units
    return counts


def test_only_what_has_waited_goes() -> None:
    gated = gated_small()
    counts = waited(gated, {"one": [2, 5]})
    decisions = choose_cut(gated, counts, 5, budget=_free(gated), least=0)
    assert decisions is not None
    assert decisions == pytest.approx({}) or (~decisions["one"]).nonzero().flatten().tolist() == [
        2,
        5,
    ]
    assert all(kept.all() for name, kept in decisions.items() if name != "one")
    assert choose_cut(gated, counts, 6, budget=_free(gated), least=0) is None


def test_a_cut_never_goes_below_the_bound_and_takes_the_least_open_first() -> None:
    gated = gated_small()
    counts = waited(gated, {"one": [1, 2, 3, 4, 5]})
    place = [site.name for site in gated.sites].index("one")
    gated.site_gates()[place].running[1:6] = torch.tensor([0.05, 0.01, 0.04, 0.02, 0.03])
    bound = 0.7 * gated.circuit.dense_macs
    decisions = choose_cut(gated, counts, 5, budget=_free(gated, bound), least=0)
    assert decisions is not None
    gone = (~decisions["one"]).nonzero().flatten().tolist()
    ranked = [2, 4, 5, 3, 1]
    assert gone == sorted(ranked[: len(gone)])
    assert macs_of(gated.circuit, list(decisions.values())) >= bound
    decisions["one"][ranked[len(gone)]] = False
    assert macs_of(gated.circuit, list(decisions.values())) < bound


def test_a_cut_that_frees_little_is_not_made() -> None:
    gated = gated_small()
    counts = waited(gated, {"one": [1]})
    freed = gated.circuit.dense_macs - macs_of(
        gated.circuit, list((all_open(gated) | all_open(gated, one=[1])).values())
    )
    assert choose_cut(gated, counts, 5, budget=_free(gated), least=freed) is not None
    assert choose_cut(gated, counts, 5, budget=_free(gated), least=freed + 1) is None


@pytest.mark.parametrize(("closed", "left"), [(1, 8), (3, 8), (4, 4), (7, 4), (8, 4)])
def test_a_multiple_of_the_alignment_stays(closed: int, left: int) -> None:
    gated = gated_small(align=4)
    decisions = choose_cut(
        gated, waited(gated, {"one": list(range(closed))}), 5, budget=_free(gated), least=0
    )
    kept = 8 if decisions is None else int(decisions["one"].sum())
    assert kept == left


def test_of_a_site_that_closes_whole_one_unit_stays() -> None:
    gated = gated_small()
    decisions = choose_cut(
        gated, waited(gated, {"one": list(range(8))}), 5, budget=_free(gated), least=0
    )
    assert decisions is not None
    assert decisions["one"].sum() == 1


def drive(one: OnePass, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(8, 3, 8, 8, generator=generator)
        labels = torch.randint(0, 4, (8,), generator=generator)
        loss = F.cross_entropy(one.network(images), labels) + 0 * one.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        one.step()


def one_pass(gated: GatedNetwork, **options: object) -> tuple[OnePass, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    settings = {"target": 0.3, "total_steps": STEPS, "phases": PHASES, "rule": RULE} | options
    one = OnePass(gated, optimizer, **settings)  # type: ignore[arg-type]
    return one, optimizer


def test_closed_units_are_cut_and_the_rest_trains_on_as_if_nothing_had_happened() -> None:
    """Beside a run in which they stay, closed: all that is left moves alike."""
    runs = {}
    for cuts in ((0.5,), ()):
        gated = gated_small()
        close(gated, "one", [1, 6])
        one, optimizer = one_pass(gated, phases=Phases(0.1, 0.9, cuts))
        one._gates._optimizer = None  # the decisions stay as they are
        drive(one, optimizer, 30)
        runs[bool(cuts)] = (one, optimizer)
    (cut, cut_optimizer), (whole, whole_optimizer) = runs[True], runs[False]
    assert [record.sites for record in cut.cuts] == [{"one": 2}]
    assert not whole.cuts
    left = [0, 2, 3, 4, 5, 7]
    assert cut.network.body.one.out_channels == 6
    for ours, theirs in (
        (cut.network.body.one.weight, whole.network.body.one.weight[left]),
        (cut.network.body.two.weight, whole.network.body.two.weight[:, left]),
        (cut.network.body.stem.weight, whole.network.body.stem.weight),
        (
            cut_optimizer.state[cut.network.body.two.weight]["momentum_buffer"],
            whole_optimizer.state[whole.network.body.two.weight]["momentum_buffer"][:, left],
        ),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(cut.network(images), whole.network(images), rtol=1e-4, atol=1e-5)


def test_a_record_says_what_went_and_that_it_was_exact() -> None:
    gated = gated_small()
    close(gated, "one", [1, 6])
    one, optimizer = one_pass(gated, measure=lambda net: net(torch.ones(1, 3, 8, 8)).sum().item())
    one._gates._optimizer = None
    drive(one, optimizer, STEPS)
    first, last = one.cuts
    assert (first.step, first.units, first.agreement) == (20, 2, 1.0)
    assert first.macs_before == one.dense_macs > first.macs_after == last.macs_before
    assert first.max_rel_error <= 1e-12
    assert first.metric_before == pytest.approx(first.metric_after, rel=1e-4)
    assert last.macs_after == polarprune.count_macs(one.finish(), image().float())
    assert last.macs_after <= 0.3 * one.dense_macs


def test_a_unit_that_opens_again_before_its_time_stays() -> None:
    gated = gated_small()
    close(gated, "one", [1, 6])
    one, optimizer = one_pass(gated)
    one._gates._optimizer = None
    drive(one, optimizer, 15)
    close(gated, "one", [6], logit=9.0)  # open again
    drive(one, optimizer, 6, start=15)
    assert gated.gone()["one"].nonzero().flatten().tolist() == [1]
    close(gated, "one", [6])
    drive(one, optimizer, 4, start=21)
    assert one.cuts[-1].step == 20


def test_spent_macs_fall_with_each_cut() -> None:
    gated = gated_small()
    close(gated, "one", [1, 2, 3, 6])
    one, optimizer = one_pass(gated)
    one._gates._optimizer = None
    drive(one, optimizer, 19)
    before = one.macs_now
    drive(one, optimizer, 1, start=19)
    assert one.macs_now - gated.gate_macs() == one.cuts[0].macs_after < before - gated.gate_macs()


def test_a_cut_run_goes_on_from_its_state(tmp_path: Path) -> None:
    def started() -> tuple[OnePass, torch.optim.Optimizer]:
        gated = gated_small()
        close(gated, "one", [1, 6])
        return one_pass(gated)

    one, optimizer = started()
    drive(one, optimizer, 25)
    assert one.cuts
    state, weights = copy.deepcopy(one.state_dict()), copy.deepcopy(one.network.state_dict())
    held = optimizer.state_dict()
    again, other = started()
    again.load_state_dict(state)
    again.network.load_state_dict(weights)
    other.load_state_dict(copy.deepcopy(held))
    drive(one, optimizer, 15, start=25)
    drive(again, other, 15, start=25)
    ours, theirs = again.finish().state_dict(), one.finish().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_network_that_can_only_be_cut_at_the_end_is_cut_at_the_end() -> None:
    """A weight that is computed from another one goes on being learned as that one."""
    net = small(compute, one=nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))).float()
    gated = polarprune.attach_gates(net, image().float())
    close(gated, "one", [1, 6])
    one, optimizer = one_pass(gated)
    one._gates._optimizer = None
    drive(one, optimizer, STEPS)
    assert [record.step for record in one.cuts] == [36]


def test_a_gate_finds_the_features_in_front_of_a_branch_that_has_gone() -> None:
    """Not the parameter that the branch was multiplied by."""

    def compute(s, x: Tensor) -> Tensor:
        y = s.stem(x)
        z = s.scale * s.one(y) + s.two(y)
        return s.head(y + s.inner(z))

    net = small(compute, inner=nn.Conv2d(8, 8, 1))
    blocks = [s.name for s in polarprune.attach_gates(net, image()).sites if s.kind == "block"]
    assert len(blocks) == 2
    for closed in ([blocks[0]], [blocks[1]], blocks):
        gated = polarprune.attach_gates(net, image())
        gated.search()
        decisions = {name: torch.tensor([name not in closed]) for name in blocks}
        gated.narrow(decisions, image())
        frozen = polarprune.attach_gates(net, image())
        frozen.set_decisions(decisions)
        gated.set_decisions({})
        assert largest_relative_error(frozen.eval()(image()), gated.eval()(image())) <= EXACT
        gated.search()
        gated.train()(image())  # the gates find what they look at


def test_a_network_without_sites_can_be_cut_and_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    gated = polarprune.attach_gates(net, image())
    gated.narrow({}, image())
    assert torch.equal(gated(image()), net(image()))


def test_what_is_gone_cannot_be_opened() -> None:
    gated = gated_small()
    gated.narrow(all_open(gated, one=[3]))
    with pytest.raises(ValueError, match=r"site 'one': units \[3\] have been cut out"):
        gated.set_decisions({"one": torch.ones(8, dtype=torch.bool)})
    gated.set_decisions({"one": all_open(gated, one=[3])["one"]})


def test_more_than_eight_cuts_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 8 cuts, got 9"):
        one_pass(gated_small(), phases=Phases(0.1, 0.9, tuple(i / 20 for i in range(3, 12))))


@pytest.mark.parametrize("at", [0.05, 0.1, 0.9, 1.5])
def test_a_cut_that_would_never_be_made_is_refused(at: float) -> None:
    with pytest.raises(ConfigError, match=r"a cut is made between search 0\.1 and settle 0\.9"):
        Phases(0.1, 0.9, (0.5, at))
