"""A certificate says what was compared; a planted fault breaks it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_networks import all_open, image, small
from torch import Tensor, nn

import polarprune
from polarprune.certificates import CUT_RTOL
from polarprune.errors import ParityError
from polarprune.gates import GatedNetwork


def _compute(s, x: Tensor) -> Tensor:
    return s.head(F.relu(s.norm(s.one(F.relu(s.stem(x))))))


@pytest.fixture
def gated() -> GatedNetwork:
    gated = polarprune.attach_gates(small(_compute), image())
    gated.set_decisions(all_open(gated, stem=[0, 5], one=[1]))
    return gated


def test_a_certificate_states_inputs_tolerance_and_error(gated: GatedNetwork) -> None:
    certificate = polarprune.certify(gated, polarprune.collapse(gated), image())
    assert certificate.passed
    assert (certificate.inputs, certificate.n, certificate.tolerance) == ("random", 2, CUT_RTOL)
    assert certificate.max_rel_error <= CUT_RTOL
    assert certificate.top1_agreement == 1.0
    assert certificate.as_dict()["stage"] == "collapsed"
    real = polarprune.certify(gated, polarprune.collapse(gated), image(), real=True)
    assert real.inputs == "real"


def test_certifying_changes_neither_network_nor_inputs(gated: GatedNetwork) -> None:
    dense, x = polarprune.collapse(gated), image()
    before = [t.clone() for net in (gated, dense) for t in net.state_dict().values()]
    polarprune.certify(gated, dense, x)
    after = [t for net in (gated, dense) for t in net.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(x, image())


def test_a_planted_weight_breaks_it(gated: GatedNetwork) -> None:
    dense = polarprune.collapse(gated)
    with torch.no_grad():
        dense.last.weight[0, 0, 0, 0] += 1e-5
    with pytest.raises(ParityError, match="relative error") as caught:
        polarprune.certify(gated, dense, image())
    assert "\n" not in str(caught.value)


def test_a_fault_that_only_training_shows_breaks_it(gated: GatedNetwork) -> None:
    dense = polarprune.collapse(gated)
    dense.norm.eps = 1e-2
    with torch.no_grad():  # evaluation is made to agree
        variance = dense.norm.running_var + 1e-5 - 1e-2
        dense.norm.running_var.copy_(variance)
    with pytest.raises(ParityError):
        polarprune.certify(gated, dense, image())


def test_a_network_cut_by_other_decisions_breaks_it(gated: GatedNetwork) -> None:
    dense = polarprune.collapse(gated)
    gated.set_decisions(all_open(gated, stem=[0, 6], one=[1]))
    with pytest.raises(ParityError):
        polarprune.certify(gated, dense, image())


def test_outputs_that_are_never_finite_certify_nothing(gated: GatedNetwork) -> None:
    with torch.no_grad():
        gated.body.classes.bias.fill_(float("nan"))
    with pytest.raises(ParityError, match="no finite number"):
        polarprune.certify(gated, polarprune.collapse(gated), image())


def test_any_structure_of_outputs_is_compared() -> None:
    def compute(s, x: Tensor) -> object:
        x = F.relu(s.stem(x))
        return {"out": s.head(s.one(x)), "more": [s.head(x), (s.head(s.two(x)),)]}

    gated = polarprune.attach_gates(small(compute), image())
    gated.set_decisions(all_open(gated, stem=[1, 2, 3]))
    dense = polarprune.collapse(gated)
    assert polarprune.certify(gated, dense, image()).top1_agreement is None
    wrong = copy.deepcopy(dense)
    with torch.no_grad():
        wrong.two.weight.mul_(1.001)
    with pytest.raises(ParityError):
        polarprune.certify(gated, wrong, image())


def test_a_network_with_computed_weights_is_whole_after_it_was_certified() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
    gated = polarprune.attach_gates(
        small(lambda s, x: s.head(s.one(s.stem(x))), one=layer), image()
    )
    gated.set_decisions({})
    expected = gated(image())
    polarprune.certify(gated, polarprune.collapse(gated), image())
    assert torch.equal(gated(image()), expected)
    assert torch.nn.utils.parametrize.is_parametrized(gated.body.one)
