"""What a node does to each channel by itself: y = scale * x + shift, one pair of numbers a channel.

Cases: (1) a normalisation with running statistics, in evaluation mode; (2) a product with, or a
quotient by, a number or something computed from parameters and buffers alone; (3) a sum or a
difference with one; (4) `torch.addcmul(shift, scale, x)`, timm's Affine.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MASK = "the scale is a mask of zeros and ones"
"""A reason: such a scale stays, and the export looks whether pruning left it."""
_PRODUCTS = (operator.mul, torch.mul, "mul")
_QUOTIENTS = (operator.truediv, torch.div, "div")
_SUMS = (operator.add, torch.add, "add")
_DIFFERENCES = (operator.sub, torch.sub, "sub")


class NotPerChannel(Exception):
    """Why a node is no map of this kind along the axis that was asked for."""


@dataclass(frozen=True)
class ChannelMap:
    """In float64. `None` is a scale of 1 or a shift of 0."""

    scale: Tensor | None
    shift: Tensor | None

    def to(self, device: torch.device) -> "ChannelMap":
        """The same on a device: a number in the graph is on none."""
        scale, shift = (v if v is None else v.to(device) for v in (self.scale, self.shift))
        return ChannelMap(scale, shift)


@dataclass(frozen=True)
class Candidate:
    """A node that may be such a map of `source`: a norm, or arithmetic with constants."""

    node: fx.Node
    source: fx.Node
    norm: nn.Module | None = None
    scale: Any = None
    shift: Any = None
    divide: bool = False
    subtract: bool = False

    @property
    def name(self) -> str:
        """The norm's path, or the name of the arithmetic."""
        return str(self.node.target) if self.norm is not None else self.node.name


class ChannelMaps:
    """The maps in one network, whose nodes know their shapes (ShapeProp)."""

    def __init__(self, net: fx.GraphModule) -> None:
        self.net = net
        self.constants: set[fx.Node] = set()
        for node in net.graph.nodes:
            called = node.op in ("call_function", "call_method") and node.all_input_nodes
            if node.op == "get_attr" or (called and self.constants.issuperset(called)):
                self.constants.add(node)

    def candidate(self, node: fx.Node) -> Candidate | None:
        """The node as a map, whatever the axis; None where it is another operator."""
        if node.op == "call_module":
            module = self.net.get_submodule(str(node.target))
            if type(module) in NORMS and node.args and isinstance(node.args[0], fx.Node):
                return Candidate(node, node.args[0], norm=module)
            return None
        if node.op not in ("call_function", "call_method") or node.kwargs:
            return None
        if node.target is torch.addcmul and len(node.args) == 3:
            shift, *factors = node.args
            source, scale = self._ordered(*factors)
            return self._arithmetic(node, source, scale=scale, shift=shift)
        if len(node.args) != 2:
            return None
        left, right = node.args
        target: Any = node.target
        if target in _PRODUCTS:
            source, scale = self._ordered(left, right)
            return self._arithmetic(node, source, scale=scale)
        if target in _QUOTIENTS:
            return self._arithmetic(node, left, scale=right, divide=True)
        if target in _SUMS:
            source, shift = self._ordered(left, right)
            return self._arithmetic(node, source, shift=shift)
        if target in _DIFFERENCES:
            return self._arithmetic(node, left, shift=right, subtract=True)
        return None

    def channel_map(self, found: Candidate, axis: int) -> ChannelMap:
        """The two vectors of a candidate along an axis of its input.

        Raises:
            NotPerChannel: the channels are not along this axis, or it is no map of each by itself.
        """
        if found.norm is not None:
            if axis != 1:
                raise NotPerChannel("the norm runs along another axis: the values are not (n, c)")
            return _norm_map(found.norm)
        before, after = (n.meta["tensor_meta"] for n in (found.source, found.node))
        if before.shape != after.shape or before.dtype != after.dtype:
            raise NotPerChannel("the arithmetic changes the shape or the type")
        scale = self._vector(found.scale, before.shape, axis)
        shift = self._vector(found.shift, before.shape, axis)
        if scale is not None and _is_mask(scale):
            raise NotPerChannel(MASK)
        if scale is not None and found.divide:
            scale = scale.reciprocal()
        if shift is not None and found.subtract:
            shift = -shift
        return ChannelMap(scale, shift)

    def _ordered(self, left: Any, right: Any) -> tuple[Any, Any]:
        """Two operands, a constant one last."""
        return (right, left) if self._is_constant(left) else (left, right)

    def _arithmetic(self, node: fx.Node, source: Any, **what: Any) -> Candidate | None:
        depends = isinstance(source, fx.Node) and source not in self.constants
        if not depends or not hasattr(source.meta.get("tensor_meta"), "shape"):
            return None
        found = Candidate(node, source, **what)
        constants = [value for value in (found.scale, found.shift) if value is not None]
        return found if all(map(self._is_constant, constants)) else None

    def _is_constant(self, argument: Any) -> bool:
        """A number, or a node computed from parameters and buffers alone."""
        if isinstance(argument, fx.Node):
            return argument in self.constants
        return isinstance(argument, int | float)

    def _vector(self, constant: Any, shape: torch.Size, axis: int) -> Tensor | None:
        """One number a channel, out of what broadcasts against a tensor of this shape."""
        if constant is None:
            return None
        value = torch.as_tensor(self._evaluate(constant), dtype=torch.float64).detach()
        value = value.reshape([1] * (len(shape) - value.dim()) + list(value.shape))
        if any(size != 1 for place, size in enumerate(value.shape) if place != axis):
            raise NotPerChannel("the constant is not one number a channel")
        return value.reshape(-1).expand(shape[axis])

    def _evaluate(self, argument: Any) -> Any:
        """The value of a constant argument, floating-point parameters taken in float64."""
        if not isinstance(argument, fx.Node):
            return argument
        if argument.op == "get_attr":
            owner, _, name = str(argument.target).rpartition(".")
            value = getattr(self.net.get_submodule(owner), name).detach()
            return value.double() if value.is_floating_point() else value
        args, kwargs = fx.node.map_arg((argument.args, argument.kwargs), self._evaluate)
        if argument.op == "call_method":
            return getattr(args[0], str(argument.target))(*args[1:], **kwargs)
        return argument.target(*args, **kwargs)  # type: ignore[operator]


def _is_mask(scale: Tensor) -> bool:
    return bool((scale == 0).any()) and bool(((scale == 0) | (scale == 1)).all())


def _norm_map(norm: nn.Module) -> ChannelMap:
    mean, variance = _wide(norm, "running_mean"), _wide(norm, "running_var")
    if mean is None or variance is None:
        raise NotPerChannel("the norm keeps no running statistics")
    scale = (variance + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
    gain, offset = _wide(norm, "weight"), _wide(norm, "bias")
    scale = scale if gain is None else scale * gain
    return ChannelMap(scale, -mean * scale if offset is None else offset - mean * scale)


def _wide(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer in float64, or None where the module was made without it."""
    tensor = getattr(module, name)
    return tensor.detach().double() if isinstance(tensor, Tensor) else None
