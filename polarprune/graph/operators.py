"""What polarprune knows about operators: which family each one belongs to.

The analysis, the rewrite and the file format all read these tables, so that a collapsed network
consists only of operators that the analysis accepts again. An operator that is in no table is
unknown: its channels are pinned and the refusal names it.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

# Combine channels: new labels come out, closed channels may go in.
MIXING_MODULES: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# Work on each channel alone and own one parameter a channel (axis 1).
NORM_MODULES: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Work on each element alone. Those that map 0 to 0 keep a literal zero a literal zero.
ZERO_KEEPING_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.Hardswish,
    nn.SiLU,
    nn.GELU,
    nn.ELU,
    nn.Mish,
    nn.Tanh,
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
    nn.Softplus,
)

# Work on each channel alone, over space; the channel axis is 1 and keeps its size.
SPATIAL_MODULES: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.ZeroPad2d,
)

# Only move data: run on labels as they are.
MOVEMENT_MODULES: tuple[type[nn.Module], ...] = (nn.Flatten,)

# Layers a collapsed network may contain: rebuilt from a short specification (network_files.py).
PLAIN_MODULES: tuple[type[nn.Module], ...] = (
    *MIXING_MODULES,
    *NORM_MODULES,
    *ELEMENTWISE_MODULES,
    *SPATIAL_MODULES,
    *MOVEMENT_MODULES,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Softmax,
)

DROPOUT_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, StochasticDepth)

# Functions, by the name that network.json uses for them.
ZERO_KEEPING_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": F.relu,
    "torch.relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "neg": operator.neg,
}
ELEMENTWISE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **ZERO_KEEPING_FUNCTIONS,
    "sigmoid": torch.sigmoid,
    "functional.sigmoid": F.sigmoid,
    "hardsigmoid": F.hardsigmoid,
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
}
SPATIAL_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max_pool2d": F.max_pool2d,
    "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "adaptive_max_pool2d": F.adaptive_max_pool2d,
    "interpolate": F.interpolate,
}
MOVEMENT_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "flatten": torch.flatten,
    "cat": torch.cat,
    "reshape": torch.reshape,
    "permute": torch.permute,
    "transpose": torch.transpose,
    "squeeze": torch.squeeze,
    "unsqueeze": torch.unsqueeze,
    "getitem": operator.getitem,
    "pad": F.pad,
}
REDUCTION_FUNCTIONS: dict[str, Callable[..., Any]] = {"mean": torch.mean}
PLAIN_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **ELEMENTWISE_FUNCTIONS,
    **BINARY_FUNCTIONS,
    **SPATIAL_FUNCTIONS,
    **MOVEMENT_FUNCTIONS,
    **REDUCTION_FUNCTIONS,
    "softmax": F.softmax,
    "torch.softmax": torch.softmax,
    "floordiv": operator.floordiv,
}

ZERO_KEEPING_METHODS = frozenset({"relu", "contiguous", "clone", "tanh", "neg"})
ELEMENTWISE_METHODS = ZERO_KEEPING_METHODS | {"sigmoid"}
BINARY_METHODS = frozenset({"add", "mul", "sub", "div"})
MOVEMENT_METHODS = frozenset(
    {"view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze"}
)
SIZE_METHODS = frozenset({"size", "dim"})
REDUCTION_METHODS = frozenset({"mean"})
PLAIN_METHODS = (
    ELEMENTWISE_METHODS
    | BINARY_METHODS
    | MOVEMENT_METHODS
    | SIZE_METHODS
    | REDUCTION_METHODS
    | {"softmax"}
)

_FUNCTION_SETS = {
    id(table): frozenset(table.values())
    for table in (
        ZERO_KEEPING_FUNCTIONS,
        ELEMENTWISE_FUNCTIONS,
        ADDITION_FUNCTIONS,
        BINARY_FUNCTIONS,
        SPATIAL_FUNCTIONS,
        MOVEMENT_FUNCTIONS,
        REDUCTION_FUNCTIONS,
        PLAIN_FUNCTIONS,
    )
}


def calls(
    node: fx.Node,
    module: nn.Module | None,
    *,
    modules: tuple[type[nn.Module], ...] = (),
    functions: dict[str, Callable[..., Any]] | None = None,
    methods: frozenset[str] = frozenset(),
) -> bool:
    """Whether a node calls one of these; `module` is the node's own where it is a call_module.

    Modules are compared by exact type: a subclass may compute something else.
    """
    if node.op == "call_module":
        return type(module) in modules
    if node.op == "call_function":
        return functions is not None and node.target in _FUNCTION_SETS[id(functions)]
    return node.op == "call_method" and node.target in methods


def module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a call_module node calls, else None."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_addition(node: fx.Node) -> bool:
    """Whether the node adds two tensors (a scalar factor `alpha` other than 1 is not plain)."""
    plain = node.kwargs.get("alpha", 1) == 1
    return (
        bool(plain)
        and calls(node, None, functions=ADDITION_FUNCTIONS, methods=frozenset({"add"}))
        and sum(isinstance(arg, fx.Node) for arg in node.args) == 2
    )
