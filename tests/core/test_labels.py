"""Where channels go, and what pins them: small networks with one difficulty each."""

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
    reasons,
    small,
)
from torch import Tensor, nn

import polarprune
from polarprune.errors import Refused
from polarprune.graph.label_pass import LabelPass
from polarprune.graph.labels import Labels


def test_an_unknown_operator_pins_its_channels_and_is_named() -> None:
    gated = check_exact(small(lambda s, x: s.head(s.one(F.relu(s.stem(x))).cumsum(1))))
    assert "operator cumsum is not known" in reasons(gated)
    assert channel_sites(gated) == {"stem": 8, "last": 6}


def test_an_unknown_layer_is_named() -> None:
    net = small(lambda s, x: s.head(s.odd(s.one(F.relu(s.stem(x))))), odd=nn.GroupNorm(2, 8))
    gated = check_exact(net)
    assert "odd: GroupNorm normalises over channels" in reasons(gated)
    assert "one" not in channel_sites(gated)


def test_parts_of_an_unknown_operator_stay_pinned() -> None:
    def compute(s, x: Tensor) -> Tensor:
        first, second = torch.hsplit(s.stem(x), 2)
        joined = torch.cat([s.left(first), s.right(second)], 1)
        return s.head(s.one(joined) + torch.cat([second, first], 1))

    layers = {"left": nn.Conv2d(4, 4, 1), "right": nn.Conv2d(4, 4, 1)}
    gated = check_exact(small(compute, **layers))
    assert "operator hsplit" in reasons(gated)
    assert channel_sites(gated) == {"left": 4, "right": 4, "last": 6}


def test_a_pool_with_indices_is_unknown() -> None:
    def compute(s, x: Tensor) -> Tensor:
        values, indices = s.pool(F.relu(s.stem(x)))
        return s.head(s.one(F.max_unpool2d(values, indices, 2)))

    gated = check_exact(small(compute, pool=nn.MaxPool2d(2, return_indices=True)))
    assert "stem" not in channel_sites(gated)


def test_a_channel_count_used_as_a_number_keeps_its_old_value() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        return s.head(s.one(x * x.shape[1] ** -0.5))

    gated = check_exact(small(compute))
    assert reasons(gated) == ""
    assert channel_sites(gated) == {"stem": 8, "one": 8, "last": 6}


def test_a_squeeze_of_the_channel_axis_pins() -> None:
    gated = check_exact(small(lambda s, x: s.head(s.one(s.stem(x).squeeze(1)))))
    assert "squeezes the channel axis" in reasons(gated)


def test_a_layer_called_twice_is_one() -> None:
    gated = check_exact(small(lambda s, x: s.head(s.one(F.relu(s.one(s.stem(x)))))))
    assert channel_sites(gated) == {"stem": 8, "last": 6}


def test_a_weight_owned_by_two_layers_is_pinned_and_stays_shared() -> None:
    net = small(lambda s, x: s.head(s.two(F.relu(s.one(F.relu(s.stem(x)))))))
    net.two.weight = net.one.weight
    gated = check_exact(net)
    assert "one: shares a weight with two" in reasons(gated)
    dense = polarprune.collapse(gated)
    assert dense.one.weight is dense.two.weight


def test_a_buffer_read_twice_ties_what_it_meets() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = s.stem(x)
        return s.head(s.one(x) * s.constant + s.two(x * s.constant))

    assert channel_sites(check_exact(small(compute))) == {"stem": 8, "last": 6}


def test_layer_scale_is_cut_with_its_channels() -> None:
    net = small(lambda s, x: s.head((y := s.stem(x)) + s.scale * s.two(F.relu(s.one(y)))))
    gated = check_exact(net)
    dense = check_decided(gated, all_open(gated, stem=[0, 3, 5]), image())
    assert torch.equal(dense.scale, net.scale[[1, 2, 4, 6, 7]])


def test_squeeze_and_excitation_ties_its_factor_to_the_stream() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        weight = torch.sigmoid(s.up(F.relu(s.down(F.adaptive_avg_pool2d(x, 1)))))
        return s.head(s.one(x * weight))

    gated = check_exact(small(compute, down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1)))
    assert channel_sites(gated) == {"stem": 8, "down": 4, "one": 8, "last": 6}


def test_one_channel_that_multiplies_many_has_to_stay() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        return s.head(s.one(x * torch.sigmoid(s.mask(x))))

    gated = check_exact(small(compute, mask=nn.Conv2d(8, 1, 1)))
    assert channel_sites(gated) == {"stem": 8, "one": 8, "last": 6}


def test_convolutions_of_one_channel() -> None:
    layers = {
        "narrow": nn.Conv2d(8, 1, 1),
        "single": nn.Conv2d(1, 1, 3),
        "wide": nn.Conv2d(1, 8, 1),
    }
    net = small(lambda s, x: s.head(s.wide(F.relu(s.single(s.narrow(s.stem(x)))))), **layers)
    gated = check_exact(net)
    assert channel_sites(gated)["single"] == 1


def test_tokens_that_are_broadcast_tie_their_channels() -> None:
    def compute(s, x: Tensor) -> Tensor:
        tokens = s.embed(F.relu(s.stem(x)).flatten(2).transpose(1, 2))
        tokens = tokens + s.mixed(tokens.mean(1, keepdim=True))
        return s.out(F.relu(tokens)).mean(1)

    layers = {"embed": nn.Linear(8, 12), "mixed": nn.Linear(12, 12), "out": nn.Linear(12, 5)}
    gated = check_exact(small(compute, **layers))
    assert channel_sites(gated) == {"stem": 8, "embed": 12}


FLATTENS = {
    "number": lambda x: x.view(-1, 8 * 4 * 4),
    "size": lambda x: x.view(x.size(0), -1),
    "flatten": lambda x: torch.flatten(x, 1),
    "through an axis": lambda x: x.view(-1, 8, 16).permute(0, 2, 1).reshape(-1, 128),
}


@pytest.mark.parametrize("flatten", FLATTENS.values(), ids=FLATTENS)
def test_flatten_before_a_linear_layer_keeps_positions(flatten) -> None:
    net = small(
        lambda s, x: s.out(flatten(F.max_pool2d(F.relu(s.stem(x)), 2))), out=nn.Linear(128, 4)
    )
    gated = check_exact(net)
    dense = check_decided(gated, all_open(gated, stem=[1, 2, 7]), image())
    assert (dense.stem.out_channels, dense.out.in_features) == (5, 80)


def test_lenet_with_its_numbers_written_out() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(s.conv1(x)), 2)
        x = F.max_pool2d(F.relu(s.conv2(x)), 2)
        x = x.view(-1, 16 * 5 * 5)
        return s.fc3(F.relu(s.fc2(F.relu(s.fc1(x)))))

    layers = {
        "conv1": nn.Conv2d(3, 6, 5),
        "conv2": nn.Conv2d(6, 16, 5),
        "fc1": nn.Linear(400, 120),
        "fc2": nn.Linear(120, 84),
        "fc3": nn.Linear(84, 10),
    }
    gated = check_exact(small(compute, **layers), image(2, 3, 32, 32))
    assert channel_sites(gated) == {"conv1": 6, "conv2": 16, "fc1": 120, "fc2": 84}


def test_a_perceptron_with_batch_norm() -> None:
    layers = {"a": nn.Linear(10, 12), "b": nn.Linear(12, 12), "c": nn.Linear(12, 3)}
    layers |= {"na": nn.BatchNorm1d(12), "nb": nn.BatchNorm1d(12)}
    net = small(lambda s, x: s.c(F.relu(s.nb(s.b(y := F.relu(s.na(s.a(x))))) + y)), **layers)
    gated = check_exact(net, image(6, 10))
    assert block_sites(gated) == ["add"]
    assert channel_sites(gated) == {"a": 12}


def test_groups_are_cut_whole() -> None:
    layers = {"grouped": nn.Conv2d(8, 12, 3, groups=4)}
    net = small(
        lambda s, x: s.out(F.relu(s.grouped(s.stem(x)))).mean((2, 3)),
        **layers,
        out=nn.Conv2d(12, 2, 1),
    )
    gated = check_exact(net)
    assert channel_sites(gated) == {"stem": 4}
    dense = check_decided(gated, all_open(gated, stem=[1, 2]), image())
    assert (dense.grouped.groups, dense.grouped.weight.shape) == (2, (6, 2, 3, 3))


def test_transposed_convolutions_dense_and_grouped() -> None:
    layers = {
        "up": nn.ConvTranspose2d(8, 12, 4, 2, 1),
        "more": nn.ConvTranspose2d(12, 8, 2, 2, groups=4),
    }
    gated = check_exact(small(lambda s, x: s.head(s.more(F.relu(s.up(s.stem(x))))), **layers))
    assert channel_sites(gated) == {"stem": 8, "up": 4, "last": 6}


def test_padding_over_space_keeps_channels_apart_in_any_mode() -> None:
    for mode, value in (("reflect", None), ("constant", 0.0), ("constant", 1.0)):
        net = small(
            lambda s, x, m=mode, v=value: s.head(s.one(F.pad(s.stem(x), (1, 1, 1, 1), m, v)))
        )
        assert channel_sites(check_exact(net)) == {"stem": 8, "one": 8, "last": 6}


def test_keyword_operands_are_understood() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(input=s.stem(x))
        x = torch.cat(tensors=[s.one(x), s.two(x)], dim=1)
        return s.out(F.pad(input=x, pad=(1, 1, 1, 1))).mean((2, 3))

    gated = check_exact(small(compute, out=nn.Conv2d(16, 4, 3)))
    assert channel_sites(gated) == {"stem": 8, "one": 8, "two": 8}


def test_a_tie_left_out_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    true = LabelPass._binary

    def untied(self, node, module):
        monkeypatch.setattr(Labels, "tie", lambda *_: None)
        result = true(self, node, module)
        monkeypatch.undo()
        monkeypatch.setattr(LabelPass, "_binary", untied)
        return result

    monkeypatch.setattr(LabelPass, "_binary", untied)
    with pytest.raises((RuntimeError, AssertionError, ValueError, Refused)):
        check_exact(small(lambda s, x: s.head((y := s.stem(x)) + s.two(F.relu(s.one(y))))))


def test_an_unpinned_unknown_operator_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LabelPass, "unknown", lambda self, node: self.inputs(node)[0])
    with pytest.raises(AssertionError):
        check_exact(small(lambda s, x: s.head(s.one(F.relu(s.stem(x))).cumsum(1))))
