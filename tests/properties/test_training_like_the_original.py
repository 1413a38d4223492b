"""A network that gates were attached to trains as the original does while they are open.

Several steps of SGD with momentum and weight decay in float64, dropouts and stochastic depth with
the same random numbers: every parameter and every buffer ends where the original's does.
"""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from known_networks import NAMES, build, distinct, images, parts
from random_graphs import Recipe
from torch import Tensor, nn
from training_steps import largest_difference, network_parameters, train_step

import polarprune
from polarprune.errors import Refused
from polarprune.gates import GatedNetwork

# The same kernels in the same order; a gradient with several terms may be added up in another.
EXACT = 1e-9
STEPS = 6
FEWER = {
    **dict.fromkeys(("torchvision:resnet18", "torchvision:efficientnet_b0"), 3),
    **dict.fromkeys(("torchvision:densenet121", "torchvision:mobilenet_v2"), 3),
    **dict.fromkeys(("torchvision:convnext_tiny", "vgg16_bn"), 2),
    **dict.fromkeys(("timm:nf_resnet26", "timm:nf_regnet_b0", "timm:tf_efficientnet_lite0"), 2),
    **dict.fromkeys(("timm:resnetv2_18", "timm:skresnet18"), 2),
}
SEEDS = range(30)
MOST_REFUSED = 3

Batches = Callable[[int], Tensor]


def matched(original: nn.Module, gated: GatedNetwork) -> dict[str, str]:
    """Each parameter of the original -> the one parameter of the body that holds its numbers.

    Where the body has a layer of its own (a functional convolution's) names differ. No two
    parameters are equal (`distinct`), so the same numbers are the same parameter. What the body
    lacks must turn out to be unused.
    """
    by_value: dict[tuple[object, ...], list[tuple[str, Tensor]]] = {}
    for name, parameter in network_parameters(gated):
        by_value.setdefault(_fingerprint(parameter), []).append((name, parameter))
    found = {}
    for name, parameter in original.named_parameters():
        if _fingerprint(parameter) in by_value:
            [(other, same)] = by_value.pop(_fingerprint(parameter))
            assert torch.equal(parameter, same), name
            found[name] = other
    assert not by_value, f"parameters that the original does not have: {list(by_value)}"
    kept = set(found) & set(found.values())
    assert all(found[name] == name for name in kept)
    return found


def _fingerprint(tensor: Tensor) -> tuple[object, ...]:
    return (*tensor.shape, float(tensor.detach().flatten()[0]), float(tensor.detach().sum()))


def trained(net: nn.Module, parameters: Iterator[Tensor], batches: Batches, steps: int) -> None:
    optimizer = torch.optim.SGD(
        list(parameters), lr=0.01, momentum=0.9, weight_decay=0.01, nesterov=True
    )
    for step in range(steps):
        train_step(net, optimizer, batches(step), step)


def largest_error(original: nn.Module, gated: GatedNetwork, batches: Batches, steps: int) -> float:
    """Over all parameters and buffers, after training both."""
    names = matched(original, gated)
    tensors = dict(original.named_parameters()) | dict(original.named_buffers())
    start = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    trained(original, original.parameters(), batches, steps)
    trained(gated, (p for _, p in network_parameters(gated)), batches, steps)
    body = dict(network_parameters(gated))
    still = [n for n in names if torch.equal(start[n], original.get_parameter(n))]
    assert not still, f"{still} did not move, so nothing was compared"
    errors = {}
    for name, parameter in original.named_parameters():
        if name in names:
            errors[name] = largest_difference(parameter, body[names[name]])
        else:
            assert parameter.grad is None, f"{name} is trained but not in the body"
    buffers = dict(gated.body.named_buffers())
    for name, buffer in original.named_buffers():
        if name in buffers:
            errors[name] = largest_difference(buffer, buffers[name])
        else:
            assert torch.equal(buffer, start[name]), f"{name} is written but not in the body"
    return max(errors.values())


@pytest.mark.parametrize("name", parts(NAMES))
def test_a_known_network_trains_like_the_original(name: str) -> None:
    net = build(name)
    gated = polarprune.attach_gates(net, images(0))
    assert gated.sites
    assert gated.training
    assert largest_error(net, gated, images, FEWER.get(name, STEPS)) <= EXACT


def _scaled(x: Tensor, step: int) -> Tensor:
    return x * (1 + 0.1 * step)


def test_random_networks_train_like_the_originals() -> None:
    refused = 0
    for seed in SEEDS:
        recipe = Recipe.of_seed(seed)
        net = distinct(recipe.network()).train()
        try:
            gated = polarprune.attach_gates(net, recipe.image(3))
        except Refused:
            refused += 1
            continue
        error = largest_error(net, gated, partial(_scaled, recipe.image(3)), 4)
        assert error <= EXACT, f"{error:.1e} for {recipe}"
    assert refused <= MOST_REFUSED


# The comparison can fail: each of these has to be noticed.


def _other_momentum(gated: GatedNetwork) -> None:
    gated.body.get_submodule("layer3.2.bn2").momentum *= 1.01


def _detached(gated: GatedNetwork) -> None:
    gated.body.get_parameter("layer3.2.bn2.bias").requires_grad_(False)


def _other_sums(gated: GatedNetwork) -> None:
    gated.body.get_submodule("layer3.2.bn2").eps *= 2


@pytest.mark.parametrize("change", [_other_momentum, _detached, _other_sums])
def test_another_training_would_be_noticed(change: Callable[[GatedNetwork], None]) -> None:
    net = build("resnet20")
    gated = polarprune.attach_gates(net, images(0))
    change(gated)
    assert largest_error(net, gated, images, 1) > EXACT


def test_a_parameter_that_the_body_lacks_would_be_noticed() -> None:
    net = build("resnet20")
    gated = polarprune.attach_gates(net, images(0))
    norm = gated.body.get_submodule("layer3.2.bn2")
    norm.register_buffer("bias", norm.__dict__["_parameters"].pop("bias").detach())
    with pytest.raises(AssertionError, match=r"layer3\.2\.bn2\.bias is trained"):
        largest_error(net, gated, images, 1)
