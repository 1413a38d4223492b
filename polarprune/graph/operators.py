"""Which family of operators a node of a graph belongs to (the tables: operator_tables.py)."""

import re
from collections.abc import Callable
from enum import Enum
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from polarprune.graph.operator_tables import (
    ADDITION_FUNCTIONS,
    BATCH_NORMS,
    BINARY_FUNCTIONS,
    BINARY_METHODS,
    ELEMENTWISE_FUNCTIONS,
    ELEMENTWISE_METHODS,
    ELEMENTWISE_MODULES,
    MIXING_MODULES,
    MOVEMENT_FUNCTIONS,
    MOVEMENT_METHODS,
    MOVEMENT_MODULES,
    NORM_OVER_CHANNELS_MODULES,
    NORMALISE_FUNCTIONS,
    NORMALISE_METHODS,
    NORMALISE_MODULES,
    PER_CHANNEL_MODULES,
    REDUCTION_FUNCTIONS,
    REDUCTION_METHODS,
    SIZE_METHODS,
    SPATIAL_FUNCTIONS,
    SPATIAL_MODULES,
    ZERO_KEEPING_FUNCTIONS,
    ZERO_KEEPING_METHODS,
    ZERO_KEEPING_MODULES,
)


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
    if "parametrizations" not in module._modules:  # as is_parametrized, which costs more to ask
        return kind
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
    if isinstance(module, nn.Hardtanh) and not module.min_val <= 0 <= module.max_val:
        return False
    if operator_name(node) == "hardtanh":
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
        if not low <= 0 <= high:
            return False
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
    if node.op != "call_module":
        return None
    module: nn.Module | None = root
    for name in str(node.target).split("."):  # get_submodule checks each step, thrice the time
        module = module._modules[name] if module is not None else None
    return module


def fed_by_the_image(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values depend on the network's input."""
    fed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in fed for source in node.all_input_nodes):
            fed.add(node)
    return fed


def attribute_of(root: nn.Module, node: fx.Node) -> object:
    """What a get_attr node reads."""
    found: object = root
    for name in str(node.target).split("."):
        found = getattr(found, name)
    return found


def takes_rank(node: fx.Node, module: nn.Module | None, rank: int) -> bool:
    """Whether an operator sees a batch of images in a tensor of so many axes.

    torch takes a tensor with one axis less as one image without a batch: then axis 1 does not hold
    the channels.
    """
    kind = layer_type(module)
    name = operator_name(node) if kind is None else kind.__name__
    found = _DIMENSIONS.search(name)
    if kind in BATCH_NORMS or found is None:  # BatchNorm1d takes (n, c), and no other less
        return rank > 1
    return rank == int(found.group(1)) + 2


_DIMENSIONS = re.compile(r"([123])d$")


def is_addition(node: fx.Node) -> bool:
    """Whether the node adds two tensors (a scalar factor `alpha` other than 1 is not plain)."""
    function = node.op == "call_function" and node.target in ADDITION_FUNCTIONS.values()
    method = node.op == "call_method" and node.target == "add"
    plain = bool(node.kwargs.get("alpha", 1) == 1)
    two = sum(isinstance(arg, fx.Node) for arg in node.args) == 2
    return (function or method) and plain and two
