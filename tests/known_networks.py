"""Networks as people have them: ours, torchvision's and timm's, at sizes that train in seconds.

No two parameters hold the same numbers, so that a parameter can be found again by its value.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from reference import randomise
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchvision.ops import StochasticDepth

import polarprune
from polarprune.gates import GatedNetwork

CLASSES = 10
SIDE, BATCH = 32, 4

_TORCHVISION = (
    "resnet18", "mobilenet_v2", "densenet121", "googlenet", "shufflenet_v2_x0_5", "convnext_tiny",
    "regnet_y_400mf", "efficientnet_b0",
)  # fmt: skip
_TIMM = (
    "resnet10t", "mobilenetv3_small_050", "regnetx_002", "nf_resnet26", "nf_regnet_b0",
    "eca_nfnet_l0", "skresnet18", "ghostnet_050", "resnetv2_18", "tf_efficientnet_lite0",
)  # fmt: skip
NAMES = (
    "resnet20", "vgg16_bn", *(f"torchvision:{name}" for name in _TORCHVISION),
    *(f"timm:{name}" for name in _TIMM),
)  # fmt: skip
# Their convolutions compute a standardised weight from the parameter at each call.
STANDARDISED = ("timm:nf_resnet26", "timm:nf_regnet_b0", "timm:eca_nfnet_l0")
_MORE: dict[str, dict[str, Any]] = {  # eca_nfnet_l0 is too large as it is
    "torchvision:googlenet": {"aux_logits": False, "init_weights": False},
    "torchvision:efficientnet_b0": {"stochastic_depth_prob": 0.2},
    "timm:eca_nfnet_l0": {
        "depths": (1, 1, 1, 1), "channels": (64, 128, 256, 256), "group_size": 16, "stem_chs": 32,
    },
}  # fmt: skip


def build(name: str) -> nn.Module:
    """In float64 and training mode, with no number that is 0 or 1 by default."""
    torch.manual_seed(0)
    library, _, model = name.rpartition(":")
    options = {"num_classes": CLASSES, **_MORE.get(name, {})}
    if library == "timm":
        net = pytest.importorskip("timm").create_model(model, **options)
    elif library:
        net = getattr(torchvision.models, model)(**options)
    else:
        net = polarprune.build_network(model, num_classes=CLASSES)
    return distinct(randomise(net.double())).train()


def distinct(net: nn.Module) -> nn.Module:
    """Every parameter moved a little: ones and zeros of an initialisation are alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.02 * noise.to(parameter))
    return net


def images(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)


def loss_of(outputs: Any) -> Tensor:
    """A number that every output value moves, each another way."""
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if leaf.is_floating_point()]
    return torch.stack([_distance(leaf) for leaf in leaves]).sum()


def _distance(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    aim = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    return (output - aim).square().mean()


def without_chance(net: nn.Module) -> nn.Module:
    """Random layers that let everything pass, in training mode too."""
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth):
            module.p = 0.0
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    return net


def network_parameters(gated: GatedNetwork) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that were the network's own, by the names that the body has for them."""
    gates = {id(p) for p in gated.gate_parameters()}
    return ((n, p) for n, p in gated.body.named_parameters() if id(p) not in gates)


def largest_difference(expected: Tensor, got: Tensor) -> float:
    """Over the largest magnitude; counters must be equal."""
    assert expected.shape == got.shape, f"shapes {tuple(expected.shape)} and {tuple(got.shape)}"
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, got) else float("inf")
    assert bool(expected.isfinite().all()), "the comparison would show nothing"
    expected, got = expected.detach(), got.detach()
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return float((expected - got).abs().max()) / scale if scale else float(got.abs().sum())


Optimize = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, step: int) -> float:
    """One step, with the same random numbers for the same step."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = loss_of(net(x.clone()))
    loss.backward()
    optimizer.step()
    return float(loss.detach())
