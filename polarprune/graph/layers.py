"""A plain layer as a short specification, and back: what a cut changes and network.json stores."""

from typing import Any

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from polarprune.errors import Refused
from polarprune.graph.operator_tables import (
    BATCH_NORMS,
    CONVOLUTIONS,
    DROPOUT_MODULES,
    INSTANCE_NORMS,
    PLAIN_MODULES,
    TRANSPOSED,
)
from polarprune.graph.operators import layer_type

_CONV = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
_CONV += ["bias", "padding_mode"]
_TRANSPOSED = [*_CONV, "output_padding"]
_NORM = ["num_features", "eps", "momentum", "affine", "track_running_stats"]
_MAX_POOL = ["kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"]
_AVG_POOL = ["kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"]
_ADAPTIVE: list[type[nn.Module]] = [nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d]
_ADAPTIVE += [nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d]
_ADAPTIVE += [nn.AdaptiveMaxPool3d]
_UPSAMPLE = ["size", "scale_factor", "mode", "align_corners"]
_ARGUMENTS: dict[type[nn.Module], list[str]] = {
    **dict.fromkeys(CONVOLUTIONS, _CONV),
    **dict.fromkeys(TRANSPOSED, _TRANSPOSED),
    nn.Linear: ["in_features", "out_features", "bias"],
    **dict.fromkeys(BATCH_NORMS, _NORM),
    **dict.fromkeys(INSTANCE_NORMS, _NORM),
    nn.PReLU: ["num_parameters"],
    nn.LayerNorm: ["normalized_shape", "eps", "elementwise_affine", "bias"],
    nn.RMSNorm: ["normalized_shape", "eps", "elementwise_affine"],
    nn.GroupNorm: ["num_groups", "num_channels", "eps", "affine"],
    nn.LocalResponseNorm: ["size", "alpha", "beta", "k"],
    nn.LeakyReLU: ["negative_slope"],
    nn.RReLU: ["lower", "upper"],
    nn.GELU: ["approximate"],
    nn.GLU: ["dim"],
    nn.ELU: ["alpha"],
    nn.CELU: ["alpha"],
    nn.Hardtanh: ["min_val", "max_val"],
    nn.Softshrink: ["lambd"],
    nn.Hardshrink: ["lambd"],
    nn.Threshold: ["threshold", "value"],
    nn.Softplus: ["beta", "threshold"],
    **{kind: ["p"] for kind in DROPOUT_MODULES},
    StochasticDepth: ["p", "mode"],
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _MAX_POOL),
    nn.AvgPool1d: _AVG_POOL,
    **{kind: [*_AVG_POOL, "divisor_override"] for kind in (nn.AvgPool2d, nn.AvgPool3d)},
    nn.LPPool2d: ["norm_type", "kernel_size", "stride", "ceil_mode"],
    **{kind: ["output_size"] for kind in _ADAPTIVE},
    nn.Upsample: _UPSAMPLE,
    nn.UpsamplingNearest2d: ["size", "scale_factor"],
    nn.UpsamplingBilinear2d: ["size", "scale_factor"],
    **{kind: ["padding"] for kind in (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)},
    **{
        kind: ["padding", "value"]
        for kind in (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
    },
    nn.Flatten: ["start_dim", "end_dim"],
    nn.Unflatten: ["dim", "unflattened_size"],
    nn.ChannelShuffle: ["groups"],
    nn.PixelShuffle: ["upscale_factor"],
    nn.PixelUnshuffle: ["downscale_factor"],
    nn.Softmax: ["dim"],
    nn.LogSoftmax: ["dim"],
    nn.MultiheadAttention: [
        "embed_dim", "num_heads", "dropout", "bias", "add_zero_attn", "kdim", "vdim",
        "batch_first",
    ],
    nn.Unfold: ["kernel_size", "dilation", "padding", "stride"],
    nn.Fold: ["output_size", "kernel_size", "dilation", "padding", "stride"],
}  # fmt: skip
_BY_NAME = {kind.__name__: kind for kind in PLAIN_MODULES}


def layer_arguments(module: nn.Module) -> dict[str, Any]:
    """The constructor arguments that rebuild a plain layer (without its weights).

    Raises:
        Refused: the layer is not one of the plain ones.
    """
    kind = layer_type(module)
    if kind not in PLAIN_MODULES:
        raise Refused(
            f"{type(module).__name__} is not a plain torch layer; it cannot be stored or rebuilt"
        )
    arguments = {}
    for name in _ARGUMENTS.get(kind, []):
        if kind is nn.MultiheadAttention and name == "bias":
            value: Any = module.in_proj_bias is not None
        else:
            value = getattr(module, name)
        arguments[name] = isinstance(value, Tensor) or bool(value) if name == "bias" else value
    return arguments


def set_mode(net: nn.Module, training: bool) -> None:
    """A network's mode, where each of its layers keeps its own (frozen batch norms)."""
    net.training = training
    for module in net.modules():
        if type(module) is nn.Module:  # a container that torch.fx has made
            module.training = training


def build_layer(kind: str, arguments: dict[str, Any]) -> nn.Module:
    """A plain layer from its type name and arguments; unknown names are refused."""
    known = _BY_NAME.get(kind)
    if known is None:
        raise Refused(f"layer type {kind!r} is not one that a network file may name")
    return known(**arguments)
