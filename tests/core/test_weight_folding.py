"""Weights of open units, folded: against the original network with plain hooks that multiply."""

import copy

import pytest
import torch
import torch.nn.functional as F
from reference import cifar_resnet_wiring, largest_relative_error, random_decisions, randomise
from small_networks import block_sites, image, reasons, small
from torch import Tensor, fx, nn

import polarprune
from polarprune import certificates, gates
from polarprune.errors import ParityError, Refused
from polarprune.gates import GatedNetwork
from polarprune.graph.factors import takers_of_factor

EXACT = 1e-9


def _relaxed(net: nn.Module, x: Tensor, seed: int = 0) -> GatedNetwork:
    """Searching, every unit with a weight of its own."""
    gated = polarprune.attach_gates(net, x, method="relaxation")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gated.gate_parameters():
            parameter.uniform_(-0.4, 0.6, generator=generator)
    gated.search()
    return gated


def _multiplied(net: nn.Module, gated: GatedNetwork, decisions: dict[str, Tensor]) -> nn.Module:
    """ResNet-20 itself with hooks: every reader's input and every branch times its weights."""
    net = copy.deepcopy(net)
    wiring = cifar_resnet_wiring(3)
    weights = {
        site.name: w.detach() * decisions[site.name]
        for site, w in zip(gated.sites, gated.open_weights(), strict=True)
    }
    for layer, units in wiring.reads.items():
        factors = torch.stack([weights[site][place] for site, place in units])
        net.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, f=factors: (args[0] * f.reshape(1, -1, *[1] * (args[0].dim() - 2)),)
        )
    for name in wiring.blocks:
        norm = net.get_submodule(f"{name}.bn2")
        norm.register_forward_hook(lambda _, args, out, w=weights[name]: out * w)
    return net


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("seed", range(3))
def test_a_collapse_computes_what_multiplying_computed(seed: int, training: bool) -> None:
    torch.manual_seed(seed)
    net = randomise(polarprune.build_network("resnet20")).double().eval()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    gated = _relaxed(net, x, seed)
    decisions = random_decisions(gated.sites, seed, 0.7, 0.7)
    expected = _multiplied(net, gated, decisions).train(training)(x)
    gated.set_decisions(decisions)
    before = {name: tensor.clone() for name, tensor in gated.state_dict().items()}
    collapsed = polarprune.collapse(gated).train(training)(x)
    frozen = gated.train(training)(x)
    assert largest_relative_error(expected, frozen) <= EXACT
    assert largest_relative_error(expected, collapsed) <= EXACT
    if not training:  # the weights went into a copy
        after = gated.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_gates_that_never_searched_change_nothing() -> None:
    net = randomise(polarprune.build_network("resnet20")).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    gated = polarprune.attach_gates(net, x, method="relaxation")
    gated.set_decisions({})
    assert torch.equal(gated(x), net(x))
    assert largest_relative_error(net(x), polarprune.collapse(gated)(x)) <= EXACT


def test_the_certificate_holds_in_single_precision_and_weights_are_rounded_once() -> None:
    net = randomise(polarprune.build_network("resnet20")).eval()
    x = torch.randn(2, 3, 16, 16)
    gated = _relaxed(net, x)
    gated.set_decisions(gated.decisions(0.5))
    single, double = polarprune.collapse(gated), polarprune.collapse(copy.deepcopy(gated).double())
    assert polarprune.certify(gated, single, x).max_rel_error <= EXACT
    for name, tensor in single.state_dict().items():
        assert torch.equal(tensor, double.state_dict()[name].to(tensor.dtype)), name


def _without_the_last_site(*args: object) -> None:
    *rest, weights = args
    weights = [*weights[:-1], torch.ones_like(weights[-1])]
    gates_fold(*rest, weights)


gates_fold = gates.fold_weights


@pytest.mark.parametrize("where", ["collapse", "both"])
def test_a_fold_that_forgets_a_site_is_noticed(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    net = randomise(polarprune.build_network("resnet20")).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    gated = _relaxed(net, x)
    gated.set_decisions({})
    with monkeypatch.context() as patch:
        patch.setattr(gates, "fold_weights", _without_the_last_site)
        wrong = polarprune.collapse(gated)
    if where == "both":
        monkeypatch.setattr(gates, "fold_weights", _without_the_last_site)
    with pytest.raises(ParityError):
        certificates.certify(gated, wrong, x)


def test_a_cut_in_between_leaves_the_weights_that_are_left() -> None:
    net = randomise(polarprune.build_network("resnet20")).double().eval()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    gated = _relaxed(net, x)
    first = random_decisions(gated.sites, 1, 0.8, 0.8)
    last = {
        name: kept & more
        for (name, kept), more in zip(
            first.items(), random_decisions(gated.sites, 2, 0.8, 0.8).values(), strict=True
        )
    }
    for site in gated.sites:
        if site.kind == "channel" and not last[site.name].any():
            last[site.name][first[site.name].nonzero()[0]] = True
    expected = _multiplied(net, gated, last)(x)
    gated.narrow(first, x)
    gated.set_decisions({s.name: last[s.name] & ~gated.gone()[s.name] for s in gated.sites})
    assert largest_relative_error(expected, gated(x)) <= EXACT
    assert largest_relative_error(expected, polarprune.collapse(gated)(x)) <= EXACT
    assert polarprune.certify(gated, polarprune.collapse(gated), x).passed


def test_a_computed_weight_is_not_folded_into_behind_its_back() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
    net = small(lambda s, x: s.head(s.one(F.relu(s.stem(x)))), one=layer).eval()
    gated = _relaxed(net, image())
    gated.set_decisions({})
    with pytest.raises(Refused, match="computed from others"):
        copy.deepcopy(gated).fold()
    collapsed = polarprune.collapse(gated)
    assert largest_relative_error(gated(image()), collapsed(image())) <= EXACT
    assert polarprune.certify(gated, collapsed, image()).max_rel_error <= EXACT


def test_a_block_in_front_of_a_computed_weight_is_not_folded_into_it_either() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
    net = small(lambda s, x: (lambda y: s.head(F.relu(y + s.two(y))))(F.relu(s.stem(x))), two=layer)
    gated = polarprune.attach_gates(net.eval(), image(), method="relaxation", channels=False)
    gated.set_decisions({})
    for gate in gated.gate_modules():
        gate.weight.fill_(0.4)
    with pytest.raises(Refused, match="computed from others"):
        gated.fold()
    collapsed = polarprune.collapse(gated)
    assert largest_relative_error(gated(image()), collapsed(image())) <= EXACT


def test_a_branch_of_which_parts_have_gone_takes_its_weight() -> None:
    """Of a shuffled stream with a channel closed the branch is put together from slices."""

    def compute(s, x: Tensor) -> Tensor:
        y = torch.channel_shuffle(s.stem(x), 2)
        return s.head(F.relu(s.grouped(F.relu(y + s.one(y)))))

    net = small(compute, grouped=nn.Conv2d(8, 8, 1, groups=4)).eval()
    gated = _relaxed(net, image())
    assert block_sites(gated)
    site = next(s for s in gated.sites if s.kind == "channel" and s.units == 4)
    for unit in range(4):
        decisions = {site.name: torch.arange(4) != unit}
        alone = copy.deepcopy(gated)
        alone.set_decisions(decisions)
        collapsed = polarprune.collapse(alone)
        assert largest_relative_error(alone(image()), collapsed(image())) <= EXACT
        assert polarprune.certify(alone, collapsed, image()).passed


# What a branch ends with, and who takes a factor on it; None: nobody can.
ENDS = {
    "a convolution": (lambda s, y: s.two(y), ["two.weight", "two.bias"]),
    "a normalisation": (lambda s, y: s.norm(s.two(y)), ["norm.weight", "norm.bias"]),
    "a normalisation without weights": (lambda s, y: s.bare(s.two(y)), None),
    "an activation behind one": (
        lambda s, y: F.relu(s.norm(s.two(y))), ["norm.weight", "norm.bias"]
    ),
    "a dropout": (lambda s, y: s.drop(s.two(y)), ["two.weight", "two.bias"]),
    "a sigmoid": (lambda s, y: torch.sigmoid(s.two(y)), None),
    "a product with a scale": (lambda s, y: s.scale * s.two(y), ["scale"]),
    "a product with one number": (lambda s, y: s.gain * s.two(y), ["gain"]),
    "squeeze and excitation": (
        lambda s, y: (lambda z: z * torch.sigmoid(s.one(z)))(s.norm(s.two(y))), None
    ),
    "an excitation of something else": (
        lambda s, y: s.two(y) * torch.sigmoid(s.one(y)), ["two.weight", "two.bias"]
    ),
    "a sum": (
        lambda s, y: s.two(y) + s.norm(y), ["two.weight", "two.bias", "norm.weight", "norm.bias"]
    ),
    "a sum with the image's features": (lambda s, y: s.two(y) + y, None),
    "a layer that is called twice": (lambda s, y: s.two(F.relu(s.two(y))), None),
    "a square": (lambda s, y: (lambda h: h * h)(s.two(y)), None),
    "a gelu": (lambda s, y: F.gelu(s.two(y)), None),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_what_a_branch_ends_with_takes_its_weight_or_the_block_is_refused(end: str) -> None:
    make, expected = ENDS[end]
    net = small(
        lambda s, x: (lambda y: s.head(F.relu(y + make(s, s.first(y)))))(F.relu(s.stem(x))),
        first=nn.Conv2d(8, 8, 1), bare=nn.BatchNorm2d(8, affine=False), drop=nn.Dropout(0.5),
        gain=nn.Parameter(torch.tensor(0.1)),
    ).eval()  # fmt: skip
    x = image()
    plain = polarprune.attach_gates(net, x)
    (block,) = (a for a in plain.analysis.additions.values() if a.addition == _last_addition(plain))
    graph = plain.plain()
    nodes = {node.name: node for node in graph.graph.nodes}
    assert takers_of_factor(graph, nodes[block.branch]) == expected
    gated = _relaxed(net, x)
    if expected is None:
        assert len(block_sites(gated)) < len(block_sites(plain))
        assert "a branch into which its weight cannot be folded" in reasons(gated)
    gated.set_decisions({})
    small_one = polarprune.collapse(gated)
    assert polarprune.certify(gated, small_one, x).max_rel_error <= EXACT
    if expected is not None:  # and the factor is what they say it is
        scaled = copy.deepcopy(graph)
        with torch.no_grad():
            for name in expected:
                scaled.get_parameter(name).mul_(0.25)
        got = _value_of(scaled, block.branch, x)
        assert largest_relative_error(0.25 * _value_of(graph, block.branch, x), got) <= EXACT


def _last_addition(gated: GatedNetwork) -> str:
    return max(
        (a.addition for a in gated.analysis.additions.values()),
        key=[node.name for node in gated.plain().graph.nodes].index,
    )


def _value_of(graph: fx.GraphModule, name: str, x: Tensor) -> Tensor:
    found: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            result = super().run_node(node)
            if node.name == name:
                found["value"] = result.detach().clone()
            return result

    Watch(graph.eval()).run(x)
    return found["value"]
