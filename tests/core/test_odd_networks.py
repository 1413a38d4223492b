"""Networks as people write them that a cut once got wrong, crashed on, or refused without need.

Each is the smallest that showed it.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_networks import (
    Sign,
    all_open,
    block_sites,
    channel_sites,
    check_exact,
    image,
    reasons,
    small,
)
from torch import Tensor, nn

import polarprune
from polarprune.errors import Refused

Compute = Callable[..., object]


def _padded(s, x: Tensor) -> Tensor:
    return F.pad(s.stem(x), (0, 0, 0, 0, 2, 2))


def _wide() -> nn.Module:
    return nn.Conv2d(12, 4, 1)


def _one() -> nn.Module:
    return nn.Conv2d(8, 4, 1)


def _tokens(s, x: Tensor) -> Tensor:
    return F.relu(s.stem(x)).flatten(2)


EXACT: dict[str, tuple[Compute, dict[str, object]]] = {
    # Literal zeros that stop being zero.
    "zeros plus one number": (
        lambda s, x: s.o(_padded(s, x) + s.t), {"t": nn.Parameter(torch.rand(1)), "o": _wide()}
    ),
    "zeros plus one channel": (
        lambda s, x: s.o(_padded(s, x) + s.m(s.stem(x))), {"m": nn.Conv2d(8, 1, 1), "o": _wide()}
    ),
    "zeros times one channel": (
        lambda s, x: s.o(_padded(s, x) * s.m(s.stem(x))), {"m": nn.Conv2d(8, 1, 1), "o": _wide()}
    ),
    "the larger of zeros and a number": (
        lambda s, x: s.o(torch.maximum(_padded(s, x), s.t)),
        {"t": nn.Parameter(torch.rand(())), "o": _wide()},
    ),
    "zeros over zeros": (
        lambda s, x: s.o(_padded(s, x) / (_padded(s, x) + 1)), {"o": _wide()}
    ),
    "hardtanh above zero": (lambda s, x: s.o(F.hardtanh(_padded(s, x), 0.5, 2.0)), {"o": _wide()}),
    "hardtanh layer above zero": (
        lambda s, x: s.o(s.h(_padded(s, x))), {"h": nn.Hardtanh(0.5, 2.0), "o": _wide()}
    ),
    # Weights that somebody else reads too.
    "divided by the norms of its filters": (
        lambda s, x: s.o(
            s.one(F.relu(s.stem(x))) / s.one.weight.flatten(1).norm(dim=1)[:, None, None]
        ),
        {"o": _one()},
    ),
    "a penalty on a weight": (
        lambda s, x: s.o(s.one(s.stem(x))).mean((2, 3)) + s.one.weight.square().sum(), {"o": _one()}
    ),
    "a penalty on the scales of a norm": (
        lambda s, x: s.o(s.norm(s.stem(x))).mean((2, 3)) + s.norm.weight.abs().sum(), {"o": _one()}
    ),
    "a bias that is added before": (
        lambda s, x: s.o(s.one(s.stem(x) + s.one.bias[:, None, None])), {"o": _one()}
    ),
    "the type of a weight": (lambda s, x: s.head(s.stem(x.to(s.stem.weight.dtype))), {}),
    # Tensors that torch takes as one image without a batch.
    "an instance norm over tokens": (
        lambda s, x: s.o(s.n(_tokens(s, x))), {"n": nn.InstanceNorm2d(8), "o": nn.Conv1d(8, 4, 1)}
    ),
    "an instance norm over features": (
        lambda s, x: s.o(s.n(F.relu(s.stem(x)).mean((2, 3)))),
        {"n": nn.InstanceNorm1d(8), "o": nn.Linear(8, 4)},
    ),
    "a pool over channels": (
        lambda s, x: s.o(F.avg_pool3d(F.relu(s.stem(x)), (3, 1, 1), 1, (1, 0, 0))), {"o": _one()}
    ),
    "a pool layer over tokens": (
        lambda s, x: s.o(s.p(_tokens(s, x))), {"p": nn.MaxPool2d(3, 1, 1), "o": nn.Conv1d(8, 4, 1)}
    ),
    "an adaptive pool over tokens": (
        lambda s, x: s.o(F.adaptive_avg_pool2d(_tokens(s, x), (8, 1)).flatten(1)),
        {"o": nn.Linear(8, 4)},
    ),
    "a convolution over one image": (
        lambda s, x: s.o(s.one(s.stem(x)[0]).unsqueeze(0).expand(x.shape[0], -1, -1, -1)),
        {"o": _one()},
    ),
    # Arguments by name.
    "cat along an axis": (
        lambda s, x: s.o(torch.cat([s.stem(x), s.one(s.stem(x))], axis=1)),
        {"o": nn.Conv2d(16, 4, 1)},
    ),
    "mean over axes": (lambda s, x: s.o(s.stem(x).mean(axis=(2, 3))), {"o": nn.Linear(8, 4)}),
    "inputs by name": (lambda s, x: s.o(input=F.relu(s.stem(input=x))), {"o": _one()}),
    "sizes of an unflatten by name": (
        lambda s, x: s.o(s.stem(x).unflatten(dim=1, sizes=(2, 4)).flatten(1, 2)), {"o": _one()}
    ),
    "sizes of an expand by name": (
        lambda s, x: s.o(
            s.stem(x) * s.stem(x).mean((2, 3), keepdim=True).expand(size=(-1, 8, 8, 8))
        ),
        {"o": _one()},
    ),
    # Element-wise operators with a second tensor.
    "an exponent a channel": (
        lambda s, x: s.o(F.softplus(s.stem(x)) ** s.scale), {"o": _one()}
    ),
    "a learned exponent": (
        lambda s, x: s.o(F.softplus(s.stem(x)).pow(s.p).mean((2, 3), keepdim=True).pow(1 / s.p)),
        {"p": nn.Parameter(torch.tensor(3.0)), "o": _one()},
    ),
    "a learned bound a channel": (
        lambda s, x: s.o(torch.clamp(s.stem(x), max=s.scale)), {"o": _one()}
    ),
    "a bound from another layer": (
        lambda s, x: s.o(torch.clamp(s.stem(x), max=s.one(s.stem(x)))), {"o": _one()}
    ),
    "a power of a learned base": (
        lambda s, x: s.o(torch.pow(s.p, s.stem(x))),
        {"p": nn.Parameter(torch.tensor(2.0)), "o": _one()},
    ),
    # Types that an operand decides.
    "a shortcut in another type": (
        lambda s, x: s.o(s.stem(x).float() + s.one(s.stem(x))), {"o": _one()}
    ),
    "a concatenation of two types": (
        lambda s, x: s.o(torch.cat([s.stem(x).float(), s.one(s.stem(x))], 1)),
        {"o": nn.Conv2d(16, 4, 1)},
    ),
    # Shapes that Python looks at.
    "a whole shape": (lambda s, x: s.head(F.relu(s.stem(x)).view(*s.stem(x).shape)), {}),
    "a listed shape": (lambda s, x: s.head(F.relu(s.stem(x)).view(list(s.stem(x).shape))), {}),
    "the length of a shape": (
        lambda s, x: s.head(F.relu(s.stem(x)) if len(x.shape) == 4 else x), {}
    ),
    "a look at the device": (lambda s, x: s.head(x if x.is_cuda else F.relu(s.stem(x))), {}),
    # Nothing counted is left.
    "an image plus a correction": (
        lambda s, x: x + s.o(F.relu(s.stem(x))), {"o": nn.Conv2d(8, 3, 1)}
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:input's size at dim=0 does not match")  # torch, of one image
@pytest.mark.parametrize("name", EXACT)
def test_odd_networks_are_exact(name: str) -> None:
    compute, layers = EXACT[name]
    check_exact(small(compute, **layers))


class Signed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Sign.apply(x)


class WithoutGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return F.relu(x)


@pytest.mark.parametrize("part", [Signed(), WithoutGradient()], ids=["backward", "no_grad"])
def test_a_module_with_a_gradient_of_its_own_is_kept_whole(part: nn.Module) -> None:
    net = small(lambda s, x: s.head(s.one(s.part(s.stem(x)))), part=part)
    gated = check_exact(net)
    assert "not known to keep channels apart" in reasons(gated)
    gated.open()
    for network in (net.train(), gated.train()):
        network(image()).square().sum().backward()
    for ours, theirs in zip(gated.body.stem.parameters(), net.stem.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_each_layer_keeps_its_mode() -> None:
    net = small(lambda s, x: s.head(s.norm2(s.one(s.norm(s.stem(x))))), norm2=nn.BatchNorm2d(8))
    net.train()
    net.norm.eval()
    gated = polarprune.attach_gates(net, image())
    assert (gated.training, gated.body.norm.training, gated.body.norm2.training) == (
        True,
        False,
        True,
    )
    torch.testing.assert_close(gated(image()), net(image()), rtol=1e-9, atol=0)
    gated.set_decisions(all_open(gated, stem=[1]))
    dense = polarprune.collapse(gated)
    assert (dense.training, dense.norm.training, dense.norm2.training) == (True, False, True)


def test_a_branch_whose_norm_others_call_too_is_no_block() -> None:
    """Left out, it would no longer write the statistics that they read."""

    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        for _ in range(2):
            x = F.relu(x + s.norm(s.one(x)))
        return s.head(x)

    gated = check_exact(small(compute))
    assert block_sites(gated) == []
    assert "normalisation that others call" in reasons(gated)


def test_a_branch_that_begins_at_learned_weights_is_no_block() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x, w = s.stem(x), F.relu(s.w)
        return s.head(w[0] * x + w[1] * s.one(x))

    gated = check_exact(small(compute, w=nn.Parameter(torch.rand(2) + 0.5)))
    gated.search()
    gated(image())
    assert 0 < gated.expected_macs_ratio().item() <= 1


@pytest.mark.parametrize("fold", ["windows", "mirrored"])
def test_images_folded_into_the_batch_can_be_searched(fold: str) -> None:
    """Their gates speak for all of a batch: which part belongs to which image is not known."""

    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        if fold == "windows":
            return s.head(s.one(x.reshape(-1, 8, 4, 8)).reshape(-1, 8, 8, 8))
        return s.head(s.one(torch.cat([x, x.flip(3)], 0))).reshape(2, -1, 4).mean(0)

    gated = check_exact(small(compute))
    gated.search()
    output = gated(image())
    (output.square().sum() + gated.expected_macs_ratio()).backward()
    assert all(p.grad is not None for p in gated.body.one.parameters())


def test_subclassed_norms_of_features_and_tokens_are_traced() -> None:
    class Norm(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    def compute(s, x: Tensor) -> Tensor:
        x = s.tokens(F.relu(s.stem(x)).flatten(2)).mean(2)
        return s.out(s.features(x))

    gated = check_exact(small(compute, tokens=Norm(8), features=Norm(8), out=nn.Linear(8, 4)))
    assert channel_sites(gated) == {"stem": 8}


def test_a_network_of_several_types_comes_back_as_it_was(tmp_path: Path) -> None:
    def compute(s, x: Tensor) -> Tensor:
        return s.classes(F.adaptive_avg_pool2d(s.last(s.stem(x)), 1).flatten(1).double())

    net = small(compute).float()
    net.classes.double()
    dense = polarprune.collapse(polarprune.attach_gates(net.eval(), image().float()))
    polarprune.save_network(dense, tmp_path / "net")
    loaded = polarprune.load_network(tmp_path / "net")
    assert torch.equal(loaded(image().float()), dense(image().float()))


def test_a_name_that_no_file_may_have_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    net = small(lambda s, x: s.head(s.get_submodule("conv 1")(s.stem(x))))
    net.add_module("conv 1", nn.Conv2d(8, 8, 1).double())
    dense = polarprune.collapse(polarprune.attach_gates(net, image()))
    with pytest.raises(Refused, match="'conv 1' is not a name that a network file may use"):
        polarprune.save_network(dense, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_gated_network_can_be_pickled() -> None:
    gated = polarprune.attach_gates(small(lambda s, x: s.head(s.stem(x))), image())
    gated.set_decisions(all_open(gated, stem=[1]))
    loaded = pickle.loads(pickle.dumps(gated))
    torch.testing.assert_close(loaded(image()), gated(image()), rtol=0, atol=0)


def test_what_has_no_layer_left_costs_nothing() -> None:
    assert polarprune.count_macs(nn.ReLU(), image()) == 0
