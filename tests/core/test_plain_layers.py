"""What tracing makes of layers and functions from outside torch.nn."""

import copy
from pathlib import Path

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


class Standardised(nn.Conv2d):
    """Weight standardisation: the weight that is used is not the one that is learned."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def test_a_standardised_convolution_trains_as_it_is_and_is_plain_once_cut() -> None:
    layer = Standardised(8, 8, 3, padding=1)
    net = small(lambda s, x: s.head(F.relu(s.ws(F.relu(s.stem(x))))), ws=layer)
    gated = check_exact(net)
    assert channel_sites(gated) == {"stem": 8, "ws": 8, "last": 6}
    gated.open()
    for network in (net.train(), gated.train()):
        network(image()).square().sum().backward()
    learned = dict(gated.body.named_parameters())["ws.parametrizations.weight.original"]
    torch.testing.assert_close(learned.grad, net.ws.weight.grad, rtol=1e-9, atol=1e-12)
    dense = check_decided(gated, all_open(gated, stem=[2], ws=[0, 5]), image())
    assert type(dense.ws) is nn.Conv2d
    assert [name for name, _ in dense.named_parameters() if name.startswith("ws.")] == [
        "ws.weight", "ws.bias"
    ]  # fmt: skip


def test_a_standardised_convolution_in_float32_can_be_certified() -> None:
    layer = Standardised(8, 8, 3, padding=1)
    net = small(lambda s, x: s.head(F.relu(s.ws(F.relu(s.stem(x))))), ws=layer).float()
    gated = polarprune.attach_gates(net, image().float())
    gated.set_decisions(all_open(gated, ws=[1]))
    certificate = polarprune.certify(gated, polarprune.collapse(gated), image().float())
    assert certificate.max_rel_error <= 1e-12


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x * 3


def test_a_part_that_cannot_be_traced_is_kept_whole_and_pins_its_channels() -> None:
    net = small(lambda s, x: s.head(s.two(s.picky(s.one(F.relu(s.stem(x)))))), picky=Picky())
    gated = check_exact(net)
    assert channel_sites(gated) == {"stem": 8, "two": 8, "last": 6}
    assert "operator Picky is not known" in reasons(gated)


def test_branches_on_sizes_are_those_of_the_example() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        if x.shape[-1] > 4:
            x = F.max_pool2d(x, 2)
        parts = torch.split(x, [2, 6], 1)
        return s.head(s.one(torch.cat([part for part in parts if len(parts) == 2], 1)))

    sites = channel_sites(check_exact(small(compute)))
    assert (sites["stem"], sites["stem#2"]) == (2, 6)


def test_work_in_an_unknown_operator_counts_while_its_branch_is_there() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        attended = s.attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        return s.head(x + s.one(attended))

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else self.inner(-x)

    gated = check_exact(small(compute, attention=Attention()))
    assert block_sites(gated) == ["add"]


def test_fusion_sums_can_lose_every_term_but_the_one_that_is_there_anyway() -> None:
    def compute(s, x: Tensor) -> Tensor:
        high = F.relu(s.stem(x))
        low = F.relu(s.one(F.max_pool2d(high, 2)))
        fused = high + F.interpolate(s.two(low), scale_factor=2.0)
        return s.head(fused) + s.other(low).mean((2, 3))

    gated = check_exact(small(compute, other=nn.Conv2d(8, 4, 1)))
    assert len(block_sites(gated)) == 1


def test_names_that_are_no_identifiers_can_be_saved(tmp_path: Path) -> None:
    net = small(lambda s, x: s.head(s.block.get_submodule("a-1")(s.stem(x))), block=nn.Module())
    net.block.add_module("a-1", nn.Conv2d(8, 8, 1))
    dense = polarprune.collapse(polarprune.attach_gates(net.double(), image()))
    polarprune.save_network(dense, tmp_path)
    with torch.no_grad():
        assert torch.equal(polarprune.load_network(tmp_path)(image()), dense.eval()(image()))


@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientnet_lite0",
        "resnetblur18",
        pytest.param("nf_resnet26", marks=pytest.mark.study),
    ],
)
def test_layers_of_timm_become_plain_ones(name: str) -> None:
    pytest.importorskip("timm")
    net = polarprune.build_network(f"timm:{name}", num_classes=4).eval()
    x = torch.randn(2, 3, 64, 64)
    dense = polarprune.collapse(polarprune.attach_gates(net, x))
    kinds = {type(m) for m in dense.modules() if not list(m.children())}
    assert all(k.__module__.startswith(("torch.nn", "torchvision.ops")) for k in kinds), kinds
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(x.double())
        torch.testing.assert_close(dense.double()(x.double()), expected, rtol=1e-5, atol=1e-6)


def test_a_weight_that_no_layer_can_hold_stays_learned() -> None:
    """A product of two narrow matrices: the function stays, its channels are pinned."""

    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x)).mean((2, 3))
        return s.out(F.relu(F.linear(x, s.left @ s.right)))

    layers = {"left": nn.Parameter(torch.randn(6, 2)), "right": nn.Parameter(torch.randn(2, 8))}
    net = small(compute, **layers, out=nn.Linear(6, 3))
    gated = polarprune.attach_gates(net.train(), image())
    assert channel_sites(gated) == {}
    assert "operator linear is not known" in reasons(gated)
    gated(image()).sum().backward()
    assert dict(gated.body.named_parameters())["left"].grad is not None


def test_a_sum_with_a_parameter_is_no_block() -> None:
    """As position embeddings: without the other term nothing would be left."""

    def compute(s, x: Tensor) -> Tensor:
        return s.head(F.relu(s.stem(x) + s.position))

    net = small(compute, position=nn.Parameter(torch.randn(1, 8, 8, 8)))
    gated = check_exact(net, image(1, 3, 8, 8))
    assert block_sites(gated) == []
    assert "a sum with a constant" in reasons(gated)


class Gelu(nn.Module):
    """An activation from elsewhere, as timm's."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(torch.sigmoid(1.7 * x)) if self.inplace else F.gelu(x)


class NormWithActivation(nn.BatchNorm2d):
    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize("act", [Gelu(), Gelu(inplace=True), nn.GELU()])
def test_a_norm_with_an_activation_from_elsewhere_becomes_plain(
    act: nn.Module, tmp_path: Path
) -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = s.norm(s.stem(x))
        return s.head(x + s.one(x))

    net = small(compute, norm=NormWithActivation(8, act), one=nn.Conv2d(8, 8, 1))
    gated = check_exact(net)
    assert channel_sites(gated) == {"stem": 8, "last": 6}
    polarprune.save_network(polarprune.collapse(gated), tmp_path / "net")
