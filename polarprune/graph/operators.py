"""What polarprune knows about operators: which family each one belongs to.

The analysis, the rewrite and the file format all read these tables, so that a collapsed network
consists only of operators that the analysis accepts again. An operator that is in no table is
unknown: its channels are pinned and the refusal names it.
"""

import operator
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torchvision.models import swin_transformer
from torchvision.ops import StochasticDepth


class Family(Enum):
    """How an operator treats channels."""

    MIX = "combines channels: new labels come out, closed channels may go in"
    PER_CHANNEL = "works on each channel (axis 1) alone and owns one parameter a channel"
    ELEMENTWISE = "works on each element alone"
    BINARY = "combines two tensors element by element, with broadcasting"
    SPATIAL = "works on each channel (axis 1) alone, over space"
    REDUCE = "reduces whole axes"
    NORMALISE = "normalises along one axis"
    NORM_OVER_CHANNELS = "normalises over groups of channels"
    MOVE = "only moves data: runs on labels as it is"
    SIZE = "reads sizes"
    UNKNOWN = "not known to keep channels apart"


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

_MODULE_FAMILIES: dict[type[nn.Module], Family] = {
    kind: family
    for kinds, family in (
        (MIXING_MODULES, Family.MIX),
        (PER_CHANNEL_MODULES, Family.PER_CHANNEL),
        (ELEMENTWISE_MODULES, Family.ELEMENTWISE),
        (SPATIAL_MODULES, Family.SPATIAL),
        (MOVEMENT_MODULES, Family.MOVE),
        (NORM_OVER_CHANNELS_MODULES, Family.NORM_OVER_CHANNELS),
        (NORMALISE_MODULES, Family.NORMALISE),
    )
    for kind in kinds
}
_FUNCTION_FAMILIES: dict[Callable[..., Any], Family] = {
    function: family
    for functions, family in (
        (ELEMENTWISE_FUNCTIONS, Family.ELEMENTWISE),
        (BINARY_FUNCTIONS, Family.BINARY),
        (SPATIAL_FUNCTIONS, Family.SPATIAL),
        (MOVEMENT_FUNCTIONS, Family.MOVE),
        (REDUCTION_FUNCTIONS, Family.REDUCE),
        (NORMALISE_FUNCTIONS, Family.NORMALISE),
    )
    for function in functions.values()
}
_METHOD_FAMILIES: dict[str, Family] = {
    method: family
    for methods, family in (
        (ELEMENTWISE_METHODS, Family.ELEMENTWISE),
        (BINARY_METHODS, Family.BINARY),
        (MOVEMENT_METHODS, Family.MOVE),
        (SIZE_METHODS, Family.SIZE),
        (REDUCTION_METHODS, Family.REDUCE),
        (NORMALISE_METHODS, Family.NORMALISE),
    )
    for method in methods
}
_ZERO_KEEPING_FUNCTIONS = frozenset(ZERO_KEEPING_FUNCTIONS.values())
SIZE_ATTRIBUTES = ("shape", "dtype", "device", "ndim", "is_cuda", "requires_grad")


def layer_type(module: nn.Module | None) -> type[nn.Module] | None:
    """The type of a layer; of one with a parametrised weight, the type that it had before.

    Compared exactly everywhere: a subclass may compute something else.
    """
    if module is None:
        return None
    kind = type(module)
    # torch gives every parametrised layer a class of its own, derived from the original one.
    return kind.__mro__[1] if parametrize.is_parametrized(module) else kind


def family_of(node: fx.Node, module: nn.Module | None) -> Family:
    """The family of the operator that a node calls; `module` is its layer, if it calls one."""
    if node.op == "call_module":
        kind = layer_type(module)
        if kind is nn.PReLU and getattr(module, "num_parameters", 0) == 1:
            return Family.ELEMENTWISE
        return _MODULE_FAMILIES.get(kind, Family.UNKNOWN) if kind else Family.UNKNOWN
    if node.op == "call_function":
        if reads_attribute(node):
            return Family.SIZE
        return _FUNCTION_FAMILIES.get(node.target, Family.UNKNOWN)  # type: ignore[arg-type]
    if node.op == "call_method":
        return _METHOD_FAMILIES.get(str(node.target), Family.UNKNOWN)
    return Family.UNKNOWN


def keeps_zero(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether an elementwise operator maps 0 to 0."""
    if node.op == "call_module":
        return layer_type(module) in (*ZERO_KEEPING_MODULES, nn.PReLU)
    if node.op == "call_function":
        return node.target in _ZERO_KEEPING_FUNCTIONS
    return node.target in ZERO_KEEPING_METHODS


def reads_attribute(node: fx.Node) -> bool:
    """Whether the node is `x.shape` or another attribute that says nothing of the values."""
    return (
        node.op == "call_function"
        and node.target is getattr
        and len(node.args) == 2
        and node.args[1] in SIZE_ATTRIBUTES
    )


def operator_name(node: fx.Node) -> str:
    """The plain name of a function or method: "view", "cat", "getitem"."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument that may be given by position or by name."""
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[place] if len(node.args) > place else default


def module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a call_module node calls, else None."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_addition(node: fx.Node) -> bool:
    """Whether the node adds two tensors (a scalar factor `alpha` other than 1 is not plain)."""
    function = node.op == "call_function" and node.target in ADDITION_FUNCTIONS.values()
    method = node.op == "call_method" and node.target == "add"
    plain = bool(node.kwargs.get("alpha", 1) == 1)
    two = sum(isinstance(arg, fx.Node) for arg in node.args) == 2
    return (function or method) and plain and two
