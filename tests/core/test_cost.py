"""MACs: counted three ways, expected, differentiable."""

import pytest
import torch
import torch.nn.functional as F
from reference import counted_macs
from small_networks import all_open, check_decided, check_exact, image, small
from torch import nn

import polarprune
from polarprune.graph.cost import as_float, count_parameters

LAYERS = {
    "convolution": (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 9, 9), 5 * 5 * 9 * 3 * 8),
    "grouped": (nn.Conv2d(6, 12, (3, 1), groups=3, bias=False), (1, 6, 8, 8), 6 * 8 * 3 * 2 * 12),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), (1, 6, 8, 8), 6 * 6 * 9 * 6),
    "one dimension": (nn.Conv1d(4, 8, 5, dilation=2), (1, 4, 20), 12 * 5 * 4 * 8),
    "transposed": (nn.ConvTranspose2d(4, 6, 4, 2, 1), (1, 4, 5, 5), 5 * 5 * 16 * 4 * 6),
    "transposed, grouped": (
        nn.ConvTranspose2d(4, 6, 2, 2, groups=2), (1, 4, 5, 5), 5 * 5 * 4 * 4 * 3,
    ),
    "linear": (nn.Linear(10, 7), (1, 10), 70),
    "linear on tokens": (nn.Linear(10, 7, bias=False), (1, 5, 10), 350),
    "linear on tokens, bias": (nn.Linear(10, 7), (1, 5, 10), 350),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "shape", "macs"), LAYERS.values(), ids=LAYERS)
def test_macs_of_one_layer_are_those_of_a_pencil(layer, shape, macs) -> None:
    x = torch.randn(3, *shape[1:])
    assert polarprune.count_macs(layer, x) == macs == counted_macs(layer, x)


def test_counting_leaves_the_network_and_its_mode_alone() -> None:
    net = small(lambda s, x: s.head(s.norm(s.stem(x)))).train()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    polarprune.count_macs(net, image())
    assert net.training
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())


def test_parameters_are_counted_once() -> None:
    assert count_parameters(nn.Sequential(nn.Linear(3, 2), nn.Conv2d(1, 1, 3))) == 8 + 10


def _gated():
    def compute(s, x):
        x = F.relu(s.stem(x))
        x = F.relu(x + s.two(F.relu(s.one(x))))
        return s.head(x)

    return polarprune.attach_gates(small(compute), image())


def test_expected_macs_have_a_gradient_at_every_site() -> None:
    gated = _gated()
    p = [torch.full((s.units,), 0.7, dtype=torch.double, requires_grad=True) for s in gated.sites]
    gated.circuit.evaluate(p).macs.backward()
    assert all(bool((x.grad > 0).all()) for x in p)


def test_the_gradient_is_the_finite_difference() -> None:
    gated = _gated()
    p = [torch.full((s.units,), 0.6, dtype=torch.double, requires_grad=True) for s in gated.sites]
    assert torch.autograd.gradcheck(lambda *q: gated.circuit.evaluate(list(q)).macs, p)


def test_expected_macs_of_independent_gates_are_the_mean_over_draws() -> None:
    gated = _gated()
    generator = torch.Generator().manual_seed(0)
    p = [torch.full((s.units,), 0.8, dtype=torch.double) for s in gated.sites]
    expected = as_float(gated.circuit.evaluate(p).macs)
    draws = [
        as_float(gated.circuit.evaluate([torch.bernoulli(q, generator=generator) for q in p]).macs)
        for _ in range(300)
    ]
    mean = torch.tensor(draws).mean()
    deviation = torch.tensor(draws).std() / 300**0.5
    # Five standard errors, and the sites that no draw of 8 units closes whole.
    assert abs(float(mean) - expected) <= 5 * float(deviation) + 0.002 * expected


def test_expected_macs_never_exceed_the_dense_ones() -> None:
    gated = _gated()
    ones = [torch.ones(s.units) for s in gated.sites]
    assert as_float(gated.circuit.evaluate(ones).macs) == gated.circuit.dense_macs
    assert gated.circuit.dense_macs == polarprune.count_macs(gated.plain(), image())


def test_products_in_unknown_operators_count_alike_before_and_after_a_cut() -> None:
    """Whether torch folds the batch into a product depends on strides and on requires_grad."""

    def compute(s, x: torch.Tensor) -> torch.Tensor:
        tokens = F.relu(s.stem(x)).flatten(2).transpose(1, 2)
        return s.out((tokens @ s.table).mean(1))

    net = small(compute, table=nn.Parameter(torch.randn(8, 6)), out=nn.Linear(6, 3))
    gated = polarprune.attach_gates(net.eval(), image())
    assert gated.circuit.dense_macs == polarprune.count_macs(net, image())
    dense = polarprune.collapse(gated)
    assert polarprune.count_macs(dense, image()) == gated.circuit.dense_macs


def test_a_grouped_convolution_keeps_nothing_alive_by_reading_it() -> None:
    """Its groups are read by a layer whose outputs are all closed, and by nobody else."""

    def compute(s, x: torch.Tensor) -> torch.Tensor:
        first, second = s.groups(F.relu(s.stem(x))).chunk(2, 1)
        return s.out(torch.cat([first, s.other(second)], 1)).mean((2, 3))

    layers = {
        "groups": nn.Conv2d(8, 8, 3, groups=4, padding=1),
        "other": nn.Conv2d(4, 4, 1),
        "out": nn.Conv2d(8, 3, 1),
    }
    gated = check_exact(small(compute, **layers))
    dense = check_decided(gated, all_open(gated, other=None), image())
    assert dense.groups.groups == 2


def test_a_tensor_that_is_read_before_it_is_sliced_is_needed_whole() -> None:
    def compute(s, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(s.stem(x))
        return s.out((x + s.two(F.relu(s.one(x))))[:, :4]).mean((2, 3))

    gated = check_exact(small(compute, out=nn.Conv2d(4, 3, 1)))
    dense = check_decided(gated, all_open(gated, one=[0]), image())
    assert dense.two.out_channels == 8


def test_channels_are_counted_that_a_block_held_fast_until_it_went() -> None:
    """The norm over channels is in the branch; without it one channel has no reader left."""

    def compute(s, x: torch.Tensor) -> torch.Tensor:
        x = s.stem(x)
        return s.out(F.relu(s.one(s.groups(x[:, :7])) + x[:, 1:])).mean((2, 3))

    layers = {
        "groups": nn.GroupNorm(7, 7), "one": nn.Conv2d(7, 7, 1), "out": nn.Conv2d(7, 3, 1),
    }  # fmt: skip
    gated = check_exact(small(compute, **layers))
    dense = check_decided(gated, {**all_open(gated), "add": torch.tensor([False])}, image())
    assert dense.stem.out_channels == 7


def test_blocks_alone_are_counted_too_where_slices_part_channels() -> None:
    def compute(s, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(s.stem(x))
        y = s.wide(x)
        return s.out(torch.cat([x + y[:, :8], y[:, 8:]], 1)).mean((2, 3))

    layers = {"wide": nn.Conv2d(8, 12, 3, padding=1), "out": nn.Conv2d(12, 3, 1)}
    gated = check_exact(small(compute, **layers), channels=False)
    dense = check_decided(gated, {"add": torch.tensor([False])}, image())
    assert dense.wide.out_channels == 4


def test_a_node_may_hold_channels_fast_that_do_not_lie_in_its_result() -> None:
    """A linear layer of the branch takes them along their own axis, the depthwise one's only."""

    def compute(s, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(s.stem(x))
        one, two = s.deep(x).chunk(2, 1)
        one = one + s.along(one.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        return s.out(torch.cat([s.last(one), two], 1)).mean((2, 3))

    layers = {
        "deep": nn.Conv2d(8, 8, 1, groups=8), "along": nn.Linear(8, 8),
        "last": nn.Conv2d(4, 4, 1, groups=4), "out": nn.Conv2d(8, 3, 1),
    }  # fmt: skip
    gated = check_exact(small(compute, **layers))
    assert gated.analysis.held


def test_the_cost_of_a_search_has_a_gradient_where_slices_part_channels() -> None:
    def compute(s, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(s.stem(x))
        x = torch.cat([x[:, :4] + s.a(x[:, :4]), x[:, 4:]], 1)
        return s.head(x)

    gated = polarprune.attach_gates(small(compute, a=nn.Conv2d(4, 4, 1)), image())
    assert gated.circuit.liveness.parts
    gated.search()
    gated(image())
    gated.expected_macs_ratio().backward()
    assert any(p.grad is not None and p.grad.any() for p in gated.gate_parameters())
