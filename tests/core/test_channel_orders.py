"""Orders of channels: what a cut makes of shuffles, slices and sums, with no index operators."""

import operator

import torch
import torch.nn.functional as F
from small_networks import (
    all_open,
    channel_sites,
    check_decided,
    check_exact,
    image,
    reasons,
    small,
)
from torch import Tensor, nn

import polarprune
from polarprune.graph.orders import runs


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def called(network: torch.fx.GraphModule, function: object) -> int:
    return sum(node.target is function for node in network.graph.nodes)


def test_a_cut_shuffle_before_a_convolution_is_absorbed_in_its_weights() -> None:
    net = small(lambda s, x: s.head(s.one(shuffle(F.relu(s.stem(x)), 2))))
    gated = check_exact(net)
    assert channel_sites(gated) == {"stem": 8, "one": 8, "last": 6}
    dense = check_decided(gated, all_open(gated, stem=[0, 1, 6]), image())
    assert [n.target for n in dense.graph.nodes if n.op == "call_method"] == ["flatten"]
    assert called(dense, torch.channel_shuffle) == called(dense, torch.cat) == 0
    # New positions 2k + i hold the old ones 4i + k; of these 2, 3, 4, 5 and 7 are left, in order.
    kept = [2 * (p % 4) + p // 4 for p in (2, 3, 4, 5, 7)]
    assert torch.equal(dense.one.weight, net.one.weight[:, kept])


def test_a_whole_shuffle_stays_as_it_is() -> None:
    net = small(lambda s, x: s.head(s.one(shuffle(F.relu(s.stem(x)), 2))))
    gated = check_exact(net)
    dense = check_decided(gated, all_open(gated, last=[1]), image())
    assert called(dense, torch.channel_shuffle) == 1


def test_halves_of_a_cut_shuffle_are_contiguous_slices_put_together() -> None:
    def compute(s, x: Tensor) -> Tensor:
        first, second = shuffle(F.relu(s.stem(x)), 2).chunk(2, 1)
        return s.head(torch.cat([s.left(first), s.right(second)], 1))

    layers = {"left": nn.Conv2d(4, 4, 1), "right": nn.Conv2d(4, 4, 1)}
    gated = check_exact(small(compute, **layers))
    sites = channel_sites(gated)
    assert (sites["stem"], sites["stem#2"]) == (4, 4)
    dense = check_decided(gated, all_open(gated, stem=[3]), image())
    slices = [n for n in dense.graph.nodes if n.target is operator.getitem]
    assert all(isinstance(n.args[1][1], slice) for n in slices)
    assert len(slices) == 4  # two runs for each half
    assert called(dense, torch.cat) == 3


def test_terms_of_a_sum_are_brought_into_one_order() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        return s.head(shuffle(s.one(x), 4) + s.two(x))

    gated = check_exact(small(compute), blocks=False)
    dense = check_decided(gated, all_open(gated, one=[2, 5]), image())
    assert called(dense, torch.channel_shuffle) == 0
    assert called(dense, torch.cat) == 1


def test_a_slice_through_a_site_keeps_its_part() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        return s.head(torch.cat([x[:, :3] + s.small(x), x[:, 3:]], 1))

    gated = check_exact(small(compute, small=nn.Conv2d(8, 3, 1)))
    dense = check_decided(gated, all_open(gated, stem=[0], **{"stem#2": [4]}), image())
    first, second = (n.args[1][1] for n in dense.graph.nodes if n.target is operator.getitem)
    assert (first, second) == (slice(0, 2), slice(2, 6))


def test_sizes_read_off_cut_channels_are_put_right_and_others_stay_free() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        b, c, h, w = x.shape
        return s.head(s.one(x.reshape(b, c, h * w).view(b, c, h, w)))

    gated = check_exact(small(compute))
    dense = check_decided(gated, all_open(gated, stem=[1, 2, 3]), image())
    with torch.no_grad():
        for shape in ((1, 3, 8, 8), (3, 3, 11, 5)):
            assert dense(image(*shape)).shape == (shape[0], 4)


def test_a_part_of_a_branch_that_is_left_out_goes_with_it() -> None:
    """RexNet and DPN: a shortcut joins some of a layer's channels, the others go on alone."""

    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        y = s.wide(x)
        return s.last(torch.cat([x + y[:, :8], y[:, 8:]], 1)).mean((2, 3))

    layers = {"wide": nn.Conv2d(8, 12, 3, padding=1), "last": nn.Conv2d(12, 4, 1)}
    gated = check_exact(small(compute, **layers))
    dense = check_decided(gated, {**all_open(gated), "add": torch.tensor([False])}, image())
    assert dense.wide.out_channels == 4


def test_a_view_does_not_depend_on_how_one_channel_lies_in_memory() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = s.tokens(s.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
        return s.out(s.one(x).view(x.shape[0], -1))

    gated = check_exact(small(compute, tokens=nn.Linear(8, 8), out=nn.Linear(512, 3)))
    check_decided(gated, all_open(gated, tokens=list(range(1, 8))), image())


def test_channels_picked_by_a_list_are_pinned_also_behind_zeros() -> None:
    def compute(s, x: Tensor) -> Tensor:
        picked = s.stem(x)[:, [2, 0, 1]]
        return s.out(F.pad(picked, (0, 0, 0, 0, 2, 0))).mean((2, 3))

    gated = check_exact(small(compute, out=nn.Conv2d(5, 4, 1)))
    assert polarprune.collapse(gated).out.in_channels == 3  # the zeros are gone


def test_a_convolution_over_the_channels_pins_them() -> None:
    """Efficient channel attention: neighbouring channels are mixed along another axis."""

    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        weight = s.near(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid()
        return s.head(s.one(x * weight.view(x.shape[0], -1, 1, 1).expand_as(x)))

    gated = check_exact(small(compute, near=nn.Conv1d(1, 1, 3, padding=1)))
    assert channel_sites(gated) == {"one": 8, "last": 6}


def test_groups_with_padded_zeros_in_them_are_not_cut() -> None:
    def compute(s, x: Tensor) -> Tensor:
        return s.out(s.groups(F.pad(F.relu(s.stem(x)), (0, 0, 0, 0, 2, 2)))).mean((2, 3))

    layers = {"groups": nn.Conv2d(12, 12, 3, groups=4, padding=1), "out": nn.Conv2d(12, 3, 1)}
    gated = check_exact(small(compute, **layers))
    assert channel_sites(gated) == {}
    assert "padded zeros are part of its groups" in reasons(gated)


def test_contiguous_runs() -> None:
    at = torch.tensor([4, 5, 6, 0, 1, 9, 8]).numpy()
    assert runs(at) == [(4, 7), (0, 2), (9, 10), (8, 9)]
