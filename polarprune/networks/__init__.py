"""Networks by name: our own CIFAR networks, torchvision's, timm's, and the user's factories."""

from polarprune.networks.registry import build_network, default_classes, input_size
from polarprune.networks.weights import load_weights, weights_normalisation

__all__ = [
    "build_network",
    "default_classes",
    "input_size",
    "load_weights",
    "weights_normalisation",
]
