"""Networks as people have them: ours, torchvision's and timm's, at sizes that train in seconds.

No two parameters hold the same numbers, so that a parameter can be found again by its value.
"""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torchvision
from reference import randomise
from torch import Tensor, nn

import polarprune

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
# One of each sort: plain, shuffled, concatenated, with gates of its own, standardised.
CHECKED = (
    "resnet20", "torchvision:densenet121", "torchvision:shufflenet_v2_x0_5",
    "timm:mobilenetv3_small_050", "timm:nf_resnet26",
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


def parts(names: Iterable[str]) -> list[Any]:
    """Of these networks one of each sort as they are, the others as studies."""
    return [
        name if name in CHECKED else pytest.param(name, marks=pytest.mark.study) for name in names
    ]


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
