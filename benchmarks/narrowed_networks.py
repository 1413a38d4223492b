"""The honest rival of pruning: the same architecture, uniformly narrower from the start.

Factories for --model, as `benchmarks.narrowed_networks:resnet20_half`. Widths were chosen by hand:
near one factor for all stages, and as close below the MACs as their alignment allows.
"""

from polarprune.networks.cifar_resnet import CifarResNet


def resnet20_half(num_classes: int = 10) -> CifarResNet:
    """ResNet-20 at 0.496 of its MACs; channel counts are free."""
    return CifarResNet(3, num_classes, (11, 23, 45))


def resnet20_half_align8(num_classes: int = 10) -> CifarResNet:
    """ResNet-20 at 0.447 of its MACs; channel counts are multiples of 8."""
    return CifarResNet(3, num_classes, (8, 24, 48))


for _factory in (resnet20_half, resnet20_half_align8):
    _factory.input_size = (3, 32, 32)  # type: ignore[attr-defined]
