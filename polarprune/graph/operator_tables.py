"""What polarprune knows about operators, as tables: one a family (operators.py reads them).

The analysis, the rewrite and the file format all go by them, so that a collapsed network consists
only of operators that the analysis accepts again. An operator that is in no table is unknown.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import swin_transformer
from torchvision.ops import StochasticDepth

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MIXING_MODULES: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORM_MODULES: tuple[type[nn.Module], ...] = (*BATCH_NORMS, *INSTANCE_NORMS)
PER_CHANNEL_MODULES: tuple[type[nn.Module], ...] = (*NORM_MODULES, nn.PReLU)

DROPOUT_MODULES = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    StochasticDepth,
)

# Those that map 0 to 0 keep a literal zero a literal zero.
ZERO_KEEPING_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.RReLU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.SiLU,
    nn.GELU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.Mish,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Softshrink,
    nn.Hardshrink,
    nn.Softsign,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    StochasticDepth,
)
ELEMENTWISE_MODULES: tuple[type[nn.Module], ...] = (
    *ZERO_KEEPING_MODULES,
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.LogSigmoid,
    nn.Softplus,
    nn.Threshold,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)

SPATIAL_MODULES: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.LPPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
)

MOVEMENT_MODULES: tuple[type[nn.Module], ...] = (
    nn.Flatten,
    nn.Unflatten,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
)
NORM_OVER_CHANNELS_MODULES: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORMALISE_MODULES: tuple[type[nn.Module], ...] = (nn.Softmax, nn.LogSoftmax)

# Layers a collapsed network may contain: rebuilt from a short specification (network_files.py).
PLAIN_MODULES: tuple[type[nn.Module], ...] = (
    *MIXING_MODULES,
    *PER_CHANNEL_MODULES,
    *ELEMENTWISE_MODULES,
    *SPATIAL_MODULES,
    *MOVEMENT_MODULES,
    *NORM_OVER_CHANNELS_MODULES,
    *NORMALISE_MODULES,
    nn.Softmax2d,
    nn.GLU,
    nn.LocalResponseNorm,
    nn.MultiheadAttention,
    nn.Unfold,
    nn.Fold,
)

# Functions, by the name that network.json uses for them.
ZERO_KEEPING_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": F.relu,
    "torch.relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "functional.tanh": F.tanh,
    "softsign": F.softsign,
    "neg": operator.neg,
    "torch.neg": torch.neg,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "clone": torch.clone,
}
ELEMENTWISE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **ZERO_KEEPING_FUNCTIONS,
    "sigmoid": torch.sigmoid,
    "functional.sigmoid": F.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "exp": torch.exp,
    "log": torch.log,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "clamp": torch.clamp,
    "pow": operator.pow,
    "torch.pow": torch.pow,
}
ADDITION_FUNCTIONS: dict[str, Callable[..., Any]] = {"add": operator.add, "torch.add": torch.add}
BINARY_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **ADDITION_FUNCTIONS,
    "mul": operator.mul,
    "torch.mul": torch.mul,
    "sub": operator.sub,
    "torch.sub": torch.sub,
    "truediv": operator.truediv,
    "torch.div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
SPATIAL_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max_pool2d": F.max_pool2d,
    "avg_pool2d": F.avg_pool2d,
    "max_pool1d": F.max_pool1d,
    "avg_pool1d": F.avg_pool1d,
    "max_pool3d": F.max_pool3d,
    "avg_pool3d": F.avg_pool3d,
    "lp_pool2d": F.lp_pool2d,
    "adaptive_avg_pool1d": F.adaptive_avg_pool1d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "adaptive_avg_pool3d": F.adaptive_avg_pool3d,
    "adaptive_max_pool1d": F.adaptive_max_pool1d,
    "adaptive_max_pool2d": F.adaptive_max_pool2d,
    "interpolate": F.interpolate,
}
SHUFFLE_FUNCTIONS: dict[str, Callable[..., Any]] = {"channel_shuffle": torch.channel_shuffle}
MOVEMENT_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **SHUFFLE_FUNCTIONS,
    "flatten": torch.flatten,
    "unflatten": torch.unflatten,
    "cat": torch.cat,
    "concat": torch.concat,
    "stack": torch.stack,
    "reshape": torch.reshape,
    "permute": torch.permute,
    "transpose": torch.transpose,
    "swapaxes": torch.swapaxes,
    "movedim": torch.movedim,
    "squeeze": torch.squeeze,
    "unsqueeze": torch.unsqueeze,
    "getitem": operator.getitem,
    "narrow": torch.narrow,
    "chunk": torch.chunk,
    "split": torch.split,
    "tensor_split": torch.tensor_split,
    "unbind": torch.unbind,
    "pad": F.pad,
    "pixel_shuffle": F.pixel_shuffle,
    "pixel_unshuffle": F.pixel_unshuffle,
    "roll": torch.roll,
    "flip": torch.flip,
}
REDUCTION_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "amax": torch.amax,
    "amin": torch.amin,
    "std": torch.std,
    "var": torch.var,
    "torch.norm": torch.norm,
}
NORMALISE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softmax": F.softmax,
    "torch.softmax": torch.softmax,
    "log_softmax": F.log_softmax,
    "torch.log_softmax": torch.log_softmax,
    "normalize": F.normalize,
}
# Kept as they are, their channels pinned.
PINNING_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "matmul": torch.matmul,
    "operator.matmul": operator.matmul,
    "bmm": torch.bmm,
    "einsum": torch.einsum,
    "scaled_dot_product_attention": F.scaled_dot_product_attention,
    "cumsum": torch.cumsum,
    "glu": F.glu,
    "layer_norm": F.layer_norm,
    "group_norm": F.group_norm,
    "local_response_norm": F.local_response_norm,
    "where": torch.where,
    "addcmul": torch.addcmul,
    "max": torch.max,
    "min": torch.min,
    "unfold": F.unfold,
    "fold": F.fold,
    "linear": F.linear,
    "conv1d": F.conv1d,
    "conv2d": F.conv2d,
    "grid_sample": F.grid_sample,
    "meshgrid": torch.meshgrid,
    "arange": torch.arange,
    "linspace": torch.linspace,
    "zeros": torch.zeros,
    "ones": torch.ones,
    "eye": torch.eye,
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "bitwise_not": operator.invert,
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    # Whole functions in torchvision's own traces.
    "swin.shifted_window_attention": swin_transformer.shifted_window_attention,
    "swin.relative_position_bias": swin_transformer._get_relative_position_bias,
    "swin.patch_merging_pad": swin_transformer._patch_merging_pad,
}
NUMBER_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "int": int,
    "float": float,
    "max_of": max,
    "min_of": min,
    "ceil": math.ceil,
}
PLAIN_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **ELEMENTWISE_FUNCTIONS,
    **BINARY_FUNCTIONS,
    **SPATIAL_FUNCTIONS,
    **MOVEMENT_FUNCTIONS,
    **REDUCTION_FUNCTIONS,
    **NORMALISE_FUNCTIONS,
    **PINNING_FUNCTIONS,
    **NUMBER_FUNCTIONS,
}

ZERO_KEEPING_METHODS = frozenset(
    {"relu", "contiguous", "clone", "tanh", "neg", "abs", "sqrt", "square", "float", "double"}
    | {"to", "type_as", "detach", "sin"}
)
ELEMENTWISE_METHODS = ZERO_KEEPING_METHODS | {
    "sigmoid", "exp", "log", "rsqrt", "reciprocal", "clamp", "pow", "cos"
}  # fmt: skip
BINARY_METHODS = frozenset({"add", "mul", "sub", "div", "expand_as"})
MOVEMENT_METHODS = frozenset(
    {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim"}
    | {"squeeze", "unsqueeze", "narrow", "chunk", "split", "tensor_split", "unbind", "expand"}
    | {"repeat", "roll", "flip"}
)
SIZE_METHODS = frozenset({"size", "dim", "ndimension"})
REDUCTION_METHODS = frozenset({"mean", "sum", "amax", "amin", "std", "var", "norm"})
NORMALISE_METHODS = frozenset({"softmax", "log_softmax"})
PINNING_METHODS = frozenset(
    {
        "matmul",
        "bmm",
        "cumsum",
        "unfold",
        "max",
        "min",
        "masked_fill",
        "index_select",
        "numel",
        "new_zeros",
    }
    | {"new_ones", "half", "bool", "long", "int", "view_as", "reshape_as", "T"}
)
PLAIN_METHODS = (
    ELEMENTWISE_METHODS
    | BINARY_METHODS
    | MOVEMENT_METHODS
    | SIZE_METHODS
    | REDUCTION_METHODS
    | NORMALISE_METHODS
    | PINNING_METHODS
)
