"""Everything that has to hold for one random network, whatever is decided about it.

Nothing here knows how the graph core works; MACs are counted on the calls that a forward makes.
"""

import copy
import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from random_graphs import Recipe
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torchvision.ops import StochasticDepth

import polarprune
from polarprune.collapsing import collapse_with_origins
from polarprune.decisions import macs_of
from polarprune.errors import Refused
from polarprune.gates import GatedNetwork

# The design's bound for float64: only the order of summation differs.
EXACT = 1e-9
# Each repair opens a unit, and no site has more of them.
MOST_REPAIRS = 200

Decisions = dict[str, Tensor]


@dataclass
class Report:
    """What was found out about one network that passed, or was refused in words."""

    refused: str | None = None
    not_saved: str | None = None
    largest_error: float = 0.0
    units: int = 0
    producers: int = 0
    cuts: int = 0
    repairs: int = 0
    shares: list[float] = field(default_factory=list)

    def see(self, error: float) -> None:
        assert error <= EXACT, f"relative error {error:.2e}"
        self.largest_error = max(self.largest_error, error)


# How networks are run


class _NoDropout(TorchFunctionMode):
    """Functional dropouts as the identity."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.dropout, F.dropout2d):
            return args[0]
        return func(*args, **(kwargs or {}))


def outputs_of(net: nn.Module, x: Tensor, training: bool) -> Any:
    """Outputs with all random operators off; the network's statistics move in training mode."""
    net.train(training)
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth):
            module.eval()
    with torch.no_grad(), _NoDropout():
        return net(x.clone())


def worst_error(expected: Any, got: Any) -> float:
    """Largest difference over the largest magnitude, of the worst tensor of two pytrees."""
    left, left_spec = pytree.tree_flatten(expected)
    right, right_spec = pytree.tree_flatten(got)
    assert left_spec == right_spec, f"outputs are {right_spec}, not {left_spec}"
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
        assert bool(a.isfinite().all()), "the comparison would show nothing"
        scale = float(a.abs().max())
        worst = max(worst, float((a - b).abs().max()) / (scale if scale > 0 else 1.0))
    return worst


class _CountMacs(TorchFunctionMode):
    """Adds up every convolution and linear call, whoever makes it, one output value at a time."""

    total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if func in (F.conv1d, F.conv2d, F.conv3d, F.linear):
            self.total += result.numel() * weight[0].numel()
        elif func in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d):
            # Each input value is spread over a kernel of every output channel of its group.
            source = args[0] if args else kwargs["input"]
            self.total += source.numel() * weight[0].numel()
        return result


def counted_macs(net: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one image, counted apart from polarprune's own two ways."""
    net.eval()
    with torch.no_grad(), _CountMacs() as counter:
        net(x[:1].clone())
    return counter.total


# Decisions

STYLES: dict[str, Callable[[random.Random, int], list[bool]]] = {
    "half": lambda rng, n: [rng.random() < 0.5 for _ in range(n)],
    "almost all open": lambda rng, n: [place != rng.randrange(n) or n == 1 for place in range(n)],
    "one open": lambda rng, n: _one_of(rng.randrange(n), n),
    "anything": lambda rng, n: [rng.random() < 0.3 for _ in range(n)],
}


def _one_of(chosen: int, count: int) -> list[bool]:
    return [place == chosen for place in range(count)]


def decide(gated: GatedNetwork, style: str, seed: int) -> Decisions:
    """Random decisions; only "anything" closes whole sites on purpose."""
    rng = random.Random(f"{style} {seed}")
    decisions = {}
    for site in gated.sites:
        if site.kind == "block":
            chosen = [rng.random() < 0.5]
        else:
            chosen = STYLES[style](rng, site.units)
            if style != "anything" and not any(chosen):
                chosen[rng.randrange(site.units)] = True
        decisions[site.name] = torch.tensor(chosen)
    return decisions


def give_weights(gated: GatedNetwork, seed: int) -> None:
    """Let every unit have a weight of its own when it is frozen: w = sigmoid(5 s)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gated.gate_parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    gated.search()


def set_repaired(gated: GatedNetwork, decisions: Decisions, seed: int) -> tuple[Decisions, int]:
    """Decisions as they were taken in the end, and how often a starved site was opened a bit."""
    rng = random.Random(seed)
    for repairs in range(MOST_REPAIRS):
        complaint = _complaint(gated, decisions)
        if complaint is None:
            return decisions, repairs
        named = [s for s in re.findall(r"'([^']+)'", complaint) if s in decisions]
        assert named, f"no site is named: {complaint}"
        closed = [(s, int(u)) for s in named for u in (~decisions[s]).nonzero()]
        assert closed, f"every unit of {named} is open already: {complaint}"
        site, unit = rng.choice(closed)
        decisions[site][unit] = True
    raise AssertionError("decisions are refused for ever")


def _complaint(gated: GatedNetwork, decisions: Decisions) -> str | None:
    try:
        gated.set_decisions(decisions)
    except ValueError as error:
        return str(error)
    return None


# The checks


def check_network(
    recipe: Recipe, styles: tuple[str, ...] = tuple(STYLES), *, weighed: bool = False
) -> Report:
    """Raise AssertionError for anything wrong; return what was seen.

    weighed: open units have weights between 0 and 1, which a collapse folds into the network.
    """
    report = Report()
    net, x = recipe.network(), recipe.image()
    report.producers = sum(
        m.out_features if isinstance(m, nn.Linear) else m.out_channels
        for m in net.modules()
        if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)
    )
    try:
        gated = polarprune.attach_gates(net, x, **({"method": "relaxation"} if weighed else {}))
    except Refused as refused:
        report.refused = str(refused)
        return report
    report.units = sum(site.units for site in gated.sites if site.kind == "channel")
    check_open(recipe, net, gated, report)
    if weighed:
        give_weights(gated, recipe.seed)
    for place, style in enumerate(styles):
        decisions = decide(gated, style, recipe.seed)
        taken, repairs = set_repaired(gated, decisions, recipe.seed)
        report.repairs += repairs
        check_cut(recipe, net, gated, taken, report)
        if place == 0:
            check_statistics(recipe, gated, report)
        report.cuts += 1
    return report


def check_open(recipe: Recipe, net: nn.Module, gated: GatedNetwork, report: Report) -> None:
    """Gates that are all open change nothing, in either mode."""
    for training in (False, True):
        x = recipe.image(3 if training else None)
        expected = outputs_of(copy.deepcopy(net), x, training)
        report.see(worst_error(expected, outputs_of(copy.deepcopy(gated), x, training)))


def check_cut(
    recipe: Recipe, net: nn.Module, gated: GatedNetwork, decisions: Decisions, report: Report
) -> None:
    """The collapsed network is the frozen one, costs what was expected, and is whole."""
    gated.eval()
    small = polarprune.collapse(gated)
    check_modes(recipe, gated, small, report)
    check_macs(recipe, gated, small, decisions, report)
    check_idempotent(small)
    check_other_shapes(recipe, net, gated, small, report)
    check_saved(recipe, small, report)


def check_modes(recipe: Recipe, gated: GatedNetwork, small: nn.Module, report: Report) -> None:
    for training in (False, True):
        x = recipe.image(3 if training else None)
        expected = outputs_of(copy.deepcopy(gated), x, training)
        report.see(worst_error(expected, outputs_of(copy.deepcopy(small), x, training)))


def check_statistics(recipe: Recipe, gated: GatedNetwork, report: Report) -> None:
    """Running statistics go on as they would have, at the kept positions."""
    frozen = copy.deepcopy(gated)
    small, cut = collapse_with_origins(frozen)
    small, x = copy.deepcopy(small), recipe.image(3)
    outputs_of(frozen, x, True)
    outputs_of(small, x, True)
    old = dict(frozen.body.named_buffers())
    for name, buffer in small.named_buffers():
        origin = cut.origins[name]
        if origin.name in old and buffer.is_floating_point():
            report.see(worst_error(origin.slice(old[origin.name]), buffer))


def check_macs(
    recipe: Recipe, gated: GatedNetwork, small: nn.Module, decisions: Decisions, report: Report
) -> None:
    x = recipe.image(1)
    expected = macs_of(gated.circuit, [decisions[site.name] for site in gated.sites])
    own, counted = polarprune.count_macs(small, x), counted_macs(copy.deepcopy(small), x)
    assert own == counted, f"count_macs says {own}, the calls add up to {counted}"
    assert expected == counted, f"{expected} MACs were expected, {counted} are left"
    report.shares.append(counted / max(1, gated.circuit.dense_macs))


def check_idempotent(small: nn.Module) -> None:
    again = polarprune.collapse(small)
    assert again.code == small.code, "a second collapse changed the code"
    shapes, before = (
        {name: t.shape for name, t in net.state_dict().items()} for net in (again, small)
    )
    assert shapes == before, "a second collapse changed shapes"


def check_other_shapes(
    recipe: Recipe, net: nn.Module, gated: GatedNetwork, small: nn.Module, report: Report
) -> None:
    """Other batches and image sizes pass where they pass the original."""
    for batch, more in ((1, 0), (3, 0), (2, 3)):
        x = recipe.image(batch, more)
        try:
            original = outputs_of(copy.deepcopy(net), x, False)
        except RuntimeError:
            continue
        # view(-1, 128) makes rows of another size out of a larger image.
        if any(len(leaf) != batch for leaf in pytree.tree_leaves(original)):
            continue
        expected = outputs_of(copy.deepcopy(gated), x, False)
        report.see(worst_error(expected, outputs_of(copy.deepcopy(small), x, False)))


def check_saved(recipe: Recipe, small: nn.Module, report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            polarprune.save_network(small, folder)
        except Refused as refused:
            report.not_saved = str(refused)
            return
        loaded = polarprune.load_network(folder)
    x = recipe.image()
    expected = outputs_of(copy.deepcopy(small), x, False)
    report.see(worst_error(expected, outputs_of(loaded, x, False)))
