"""The CIFAR ResNets of He et al. 2015, section 4.2: 6n + 2 layers, shortcuts of option A.

Parameter names are those of akamaster/pytorch_resnet_cifar10, whose published weights load as they
are. Everything is `torch.fx`-traceable and nothing works in place, so that a rewrite can rewire any
value without a later operator changing it behind its back.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PaddingShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides; it has no parameter."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.zeros = (0, 0, 0, 0, added // 2, added - added // 2)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """Halve the image, rounding up as a 3x3 convolution of stride 2 and padding 1 does."""
        return F.pad(x[:, :, ::2, ::2], self.zeros)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU behind the addition."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = PaddingShortcut(c_out - c_in)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """Add the branch to the shortcut."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return F.relu(branch + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages (16, 32 and 64 channels), global pooling, one linear layer."""

    def __init__(
        self, blocks_per_stage: int, num_classes: int, widths: tuple[int, int, int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, 1, blocks_per_stage)
        self.layer2 = _stage(first, second, 2, blocks_per_stage)
        self.layer3 = _stage(second, third, 2, blocks_per_stage)
        self.linear = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Logits; the image may have any height and width."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.linear(x)
        return logits


def _stage(c_in: int, c_out: int, stride: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(c_in, c_out, stride)
    return nn.Sequential(first, *(BasicBlock(c_out, c_out, 1) for _ in range(blocks - 1)))


def build_cifar_resnet(depth: int, num_classes: int) -> CifarResNet:
    """The ResNet with `depth` = 6n + 2 weight layers."""
    return CifarResNet((depth - 2) // 6, num_classes)
