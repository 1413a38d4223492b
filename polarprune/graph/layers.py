"""A plain layer as a short specification, and back: what a cut changes and network.json stores."""

from typing import Any

from torch import nn
from torchvision.ops import StochasticDepth

from polarprune.errors import Refused
from polarprune.graph.operators import PLAIN_MODULES

_CONV = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
_CONV += ["bias", "padding_mode"]
_TRANSPOSED = [*_CONV, "output_padding"]
_NORM = ["num_features", "eps", "momentum", "affine", "track_running_stats"]
_POOL = ["kernel_size", "stride", "padding", "ceil_mode"]
_ARGUMENTS: dict[type[nn.Module], list[str]] = {
    nn.Conv1d: _CONV,
    nn.Conv2d: _CONV,
    nn.Conv3d: _CONV,
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    nn.Linear: ["in_features", "out_features", "bias"],
    nn.BatchNorm1d: _NORM,
    nn.BatchNorm2d: _NORM,
    nn.BatchNorm3d: _NORM,
    nn.LayerNorm: ["normalized_shape", "eps", "elementwise_affine", "bias"],
    nn.GroupNorm: ["num_groups", "num_channels", "eps", "affine"],
    nn.LeakyReLU: ["negative_slope"],
    nn.GELU: ["approximate"],
    nn.ELU: ["alpha"],
    nn.Softplus: ["beta", "threshold"],
    nn.Dropout: ["p"],
    nn.Dropout1d: ["p"],
    nn.Dropout2d: ["p"],
    nn.Dropout3d: ["p"],
    StochasticDepth: ["p", "mode"],
    nn.MaxPool1d: [*_POOL, "dilation"],
    nn.MaxPool2d: [*_POOL, "dilation"],
    nn.AvgPool1d: [*_POOL, "count_include_pad"],
    nn.AvgPool2d: [*_POOL, "count_include_pad", "divisor_override"],
    nn.AdaptiveAvgPool1d: ["output_size"],
    nn.AdaptiveAvgPool2d: ["output_size"],
    nn.AdaptiveMaxPool1d: ["output_size"],
    nn.AdaptiveMaxPool2d: ["output_size"],
    nn.Upsample: ["size", "scale_factor", "mode", "align_corners"],
    nn.ZeroPad2d: ["padding"],
    nn.Flatten: ["start_dim", "end_dim"],
    nn.Softmax: ["dim"],
}
_BY_NAME = {kind.__name__: kind for kind in PLAIN_MODULES}


def layer_arguments(module: nn.Module) -> dict[str, Any]:
    """The constructor arguments that rebuild a plain layer (without its weights).

    Raises:
        Refused: the layer is not one of the plain ones.
    """
    if type(module) not in PLAIN_MODULES:
        raise Refused(
            f"{type(module).__name__} is not a plain torch layer; it cannot be stored or rebuilt"
        )
    arguments = {}
    for name in _ARGUMENTS.get(type(module), []):
        value = getattr(module, name)
        arguments[name] = value is not None if name == "bias" else value
    return arguments


def build_layer(kind: str, arguments: dict[str, Any]) -> nn.Module:
    """A plain layer from its type name and arguments; unknown names are refused."""
    known = _BY_NAME.get(kind)
    if known is None:
        raise Refused(f"layer type {kind!r} is not one that a network file may name")
    return known(**arguments)
