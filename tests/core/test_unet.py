"""U-Nets: cuts through concatenations, whole levels that disappear, and the names they have."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import counted_macs, largest_relative_error, randomise
from torch import Tensor, nn

import polarprune
from polarprune.decisions import macs_of
from polarprune.errors import ConfigError
from polarprune.networks.unet import UNet

EXACT = 1e-9


def _unet(depth: int, width: int, norm: bool) -> nn.Module:
    torch.manual_seed(0)
    return randomise(UNet(2, depth=depth, width=width, norm=norm)).double().eval()


def _image(depth: int) -> Tensor:
    return torch.randn(3, 3, 2**depth, 3 * 2 ** (depth - 1), dtype=torch.float64)


def _masked(net: UNet, factors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The U-Net written out once more; what reads a channel reads it times its factor."""

    def closed(name: str, y: Tensor) -> Tensor:
        return y * factors[name].reshape(1, -1, 1, 1)

    def double(layers: nn.Sequential, name: str, y: Tensor) -> Tensor:
        second = len(layers) // 2
        y = layers[:second](y)
        return layers[second:](closed(f"{name}.0", y))

    last = len(net.down[0]) // 2
    skips: list[Tensor] = []
    for level, down in enumerate(net.down):
        before = x if level == 0 else closed(f"down.{level - 1}.{last}", net.pool(skips[-1]))
        skips.append(double(down, f"down.{level}", before))
    y, name = skips[-1], f"down.{len(skips) - 1}.{last}"
    for level in reversed(range(len(net.up))):
        up = net.up[level](closed(name, y))
        left = closed(f"down.{level}.{last}", skips[level])
        y = double(
            net.merge[level], f"merge.{level}", torch.cat([left, closed(f"up.{level}", up)], 1)
        )
        name = f"merge.{level}.{last}"
    return net.head(closed(name, y))


@given(
    depth=st.integers(2, 4), width=st.sampled_from([2, 3, 4]), norm=st.booleans(),
    gone=st.sets(st.integers(0, 2)), weighed=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=10)
def test_any_channels_and_any_levels_can_go(
    depth: int, width: int, norm: bool, gone: set[int], weighed: bool, seed: int
) -> None:
    net, x = _unet(depth, width, norm), _image(depth)
    gated = polarprune.attach_gates(net, x, method="relaxation" if weighed else "consensus")
    generator = torch.Generator().manual_seed(seed)
    if weighed:
        with torch.no_grad():
            for parameter in gated.gate_parameters():
                parameter.uniform_(-0.5, 0.5, generator=generator)
        gated.search()
    decisions = {}
    for site in gated.sites:
        chosen = torch.rand(site.units, generator=generator) < 0.6
        chosen[torch.randint(site.units, (1,), generator=generator)] = True
        if site.name in {f"up.{level}" for level in gone}:
            chosen[:] = False
        decisions[site.name] = chosen
    factors = {
        site.name: decisions[site.name] * weight.detach()
        for site, weight in zip(gated.sites, gated.open_weights(), strict=True)
    }
    gated.set_decisions(decisions)
    small = polarprune.collapse(gated)
    for training in (False, True):
        expected = _masked(net.train(training), factors, x)
        assert largest_relative_error(expected, small.train(training)(x)) <= EXACT
    assert not _layers(small, f"down.{min(gone, default=depth) + 1}.")
    macs = macs_of(gated.circuit, [decisions[s.name] for s in gated.sites])
    assert macs == counted_macs(small, x)


def _layers(net: nn.Module, *prefixes: str) -> list[str]:
    return [name for name, _ in net.named_modules() if name.startswith(prefixes)]


def test_no_channel_of_a_unet_is_refused_and_none_is_missed() -> None:
    net = UNet(2, depth=3, width=4)
    gated = polarprune.attach_gates(net, torch.zeros(1, 3, 16, 16))
    assert gated.refused == []
    producers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert sum(s.units for s in gated.sites) == sum(m.out_channels for m in producers) - 2


@pytest.mark.parametrize("target", [0.5, 0.1, 0.05])
def test_a_level_goes_where_its_channels_are_the_least_likely(target: float) -> None:
    net, x = _unet(4, 4, True), _image(4)
    gated = polarprune.attach_gates(net, x)
    for site, gate in zip(gated.sites, gated.site_gates(), strict=True):
        low = site.name.startswith(("up.1", "down.2", "down.3", "up.2", "merge.2"))
        gate.running.copy_(torch.rand(site.units) * 0.4 + (0.0 if low else 0.5))
    gated.search()
    decisions = gated.decisions(target)
    assert not decisions["up.1"].any()
    gated.set_decisions(decisions)
    small = polarprune.collapse(gated)
    assert not [
        name for name, _ in small.named_modules() if name.startswith(("down.2.", "down.3."))
    ]
    assert polarprune.certify(gated, small, x).max_rel_error <= EXACT


@pytest.mark.parametrize(
    ("name", "depth", "width", "norm"),
    [
        ("unet", 4, 32, True), ("unet-d5-w8-plain", 5, 8, False), ("unet-w16", 4, 16, True),
        ("unet-d2", 2, 32, True),
    ],
)  # fmt: skip
def test_depth_width_and_norm_are_in_the_name(
    name: str, depth: int, width: int, norm: bool
) -> None:
    net = polarprune.build_network(name, num_classes=3)
    expected = UNet(3, depth=depth, width=width, norm=norm)
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in expected.state_dict().items()
    }


@pytest.mark.parametrize("name", ["unet-d0", "unet-w0", "unet-x3", "unet-d4-w"])
def test_what_is_no_unet_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        polarprune.build_network(name)
    assert "\n" not in str(raised.value)
