"""What a cut leaves: residual blocks, concatenations, paddings, operators without a point."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import (
    all_open,
    block_sites,
    channel_sites,
    check_decided,
    check_exact,
    image,
    small,
)
from torch import Tensor, nn

import polarprune
from polarprune.errors import Refused
from polarprune.graph.operators import is_addition


def _dense_cat(s, x: Tensor) -> Tensor:
    x = F.relu(s.stem(x))
    left = F.relu(s.one(F.relu(s.before(x))))
    right = F.relu(s.two(x))
    return s.out(torch.cat([left, right], 1)).mean((2, 3))


_CAT_LAYERS = {"before": lambda: nn.Conv2d(8, 5, 1), "out": lambda: nn.Conv2d(16, 4, 3)}


def _cat_network() -> nn.Module:
    net = small(_dense_cat, **{n: make() for n, make in _CAT_LAYERS.items()})
    net.one = nn.Conv2d(5, 8, 3, padding=1).double()
    return net


def test_one_operand_of_a_concatenation_may_be_closed_whole() -> None:
    gated = check_exact(_cat_network())
    assert channel_sites(gated) == {"stem": 8, "before": 5, "one": 8, "two": 8}
    dense = check_decided(gated, all_open(gated, one=None), image())
    assert not hasattr(dense, "before")
    assert not hasattr(dense, "one")
    assert not [n for n in dense.graph.nodes if n.target is torch.cat]


def test_what_feeds_only_a_closed_operand_may_be_closed_too() -> None:
    gated = check_exact(_cat_network())
    check_decided(gated, all_open(gated, one=None, before=None), image())


def test_all_operands_closed_is_refused() -> None:
    gated = polarprune.attach_gates(_cat_network(), image())
    with pytest.raises(ValueError, match="'one', 'two'"):
        gated.set_decisions(all_open(gated, one=None, two=None))


def test_a_dense_stream_of_concatenations() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = s.stem(x)
        x = torch.cat([x, s.one(F.relu(s.norm(x)))], 1)
        return s.out(F.relu(s.norm16(x))).mean((2, 3))

    net = small(compute, norm16=nn.BatchNorm2d(16), out=nn.Conv2d(16, 4, 1))
    gated = check_exact(net)
    assert channel_sites(gated) == {"stem": 8, "one": 8}
    check_decided(gated, all_open(gated, one=None), image())


def test_a_projection_shortcut_survives_its_block() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        return s.out(F.relu(s.deep(F.relu(s.one(x))) + s.project(x))).mean((2, 3))

    layers = {
        "deep": nn.Conv2d(8, 12, 3, stride=2, padding=1),
        "project": nn.Conv2d(8, 12, 1, stride=2),
        "out": nn.Conv2d(12, 4, 1),
    }
    gated = check_exact(small(compute, **layers))
    assert block_sites(gated) == ["add"]
    dense = check_decided(gated, all_open(gated, add=None), image())
    assert hasattr(dense, "project")
    assert not hasattr(dense, "deep")
    assert not [n for n in dense.graph.nodes if is_addition(n)]


def test_of_a_sum_of_convolutions_one_term_always_stays() -> None:
    net = small(
        lambda s, x: s.head(F.relu(s.one(y := F.relu(s.stem(x))) + s.two(y) + s.three(y))),
        three=nn.Conv2d(8, 8, 1),
    )
    gated = check_exact(net)
    assert len(block_sites(gated)) == 2


def test_nested_blocks_close_in_any_combination() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        inner = s.one(x) + x
        return s.head(F.relu(s.two(F.relu(inner)) + x))

    gated = check_exact(small(compute))
    assert len(block_sites(gated)) == 2
    for first in (True, False):
        for second in (True, False):
            decisions = all_open(gated)
            for name, value in zip(block_sites(gated), (first, second), strict=True):
                decisions[name][0] = value
            check_decided(gated, decisions, image())


def test_a_relu_of_a_relu_goes_when_a_block_does() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        return s.head(F.relu(x + s.two(F.relu(s.one(x)))))

    gated = check_exact(small(compute))
    dense = check_decided(gated, all_open(gated, add=None), image())
    assert sum(node.target is F.relu for node in dense.graph.nodes) == 1


def test_a_relu_behind_a_difference_stays() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = s.stem(x)
        return s.head(F.relu(torch.add(F.relu(x), F.relu(s.one(x)), alpha=-1)))

    check_exact(small(compute))


def test_a_parametrised_layer_keeps_its_parameters() -> None:
    net = small(lambda s, x: s.head(F.relu(s.one(F.relu(s.stem(x))))))
    torch.nn.utils.parametrizations.weight_norm(net.one)
    gated = polarprune.attach_gates(net, image())
    assert channel_sites(gated) == {"stem": 8, "one": 8, "last": 6}
    gated.set_decisions(all_open(gated, stem=[3], one=[2, 7], last=[0, 1]))
    polarprune.certify(gated, polarprune.collapse(gated), image())


def test_an_overflowing_closed_branch_leaves_no_trace() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = s.stem(x)
        return s.head(x + s.two(F.relu(s.one(x))))

    net = small(compute)
    with torch.no_grad():
        net.two.weight.fill_(1e300)
        net.one.weight.fill_(1e300)
    gated = polarprune.attach_gates(net.eval(), image(), channels=False)
    gated.set_decisions({"add": torch.tensor([False])})
    with torch.no_grad():
        assert bool(gated(image()).isfinite().all())


def test_frozen_parameters_stay_frozen() -> None:
    net = small(lambda s, x: s.head(s.norm(s.stem(x))))
    net.stem.weight.requires_grad_(False)
    gated = polarprune.attach_gates(net, image())
    gated.set_decisions(all_open(gated, stem=[0]))
    dense = polarprune.collapse(gated)
    assert not dense.stem.weight.requires_grad
    assert dense.stem.bias.requires_grad


def test_a_network_that_is_neither_gated_nor_collapsed_is_refused() -> None:
    with pytest.raises(Refused, match="call attach_gates first"):
        polarprune.collapse(nn.Conv2d(3, 3, 1))
