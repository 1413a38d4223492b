"""Shapes of every value of a graph, from a run on the meta device: no arithmetic, no weights."""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from polarprune.graph.operator_tables import (
    ELEMENTWISE_FUNCTIONS,
    ELEMENTWISE_MODULES,
    PER_CHANNEL_MODULES,
)
from polarprune.graph.operators import Family, family_of, layer_type, module_of

Values = dict[str, Any]

# What counts as multiply-accumulates: convolutions, transposed ones and linear layers.
COUNTED = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)


def run_for_values(graph_module: fx.GraphModule, example_input: Tensor) -> Values:
    """Every node's value in one evaluation-mode forward; tensors on the meta device.

    Args:
        example_input: (n, ...); only shape and dtype matter. Operators that have no meta kernel
            make the whole run a real one.
    """
    try:
        return _Recorder(graph_module, real=False).record(
            torch.empty(example_input.shape, dtype=example_input.dtype, device="meta")
        )
    except (NotImplementedError, RuntimeError):
        return _Recorder(graph_module, real=True).record(example_input)


class _Recorder(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule, *, real: bool) -> None:
        super().__init__(graph_module)
        self.real = real
        self.values: Values = {}
        self.twins: dict[int, nn.Module] = {}

    def record(self, example_input: Tensor) -> Values:
        with torch.no_grad():
            self.run(example_input)
        return self.values

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        kept = result
        if self.real:
            kept = pytree.tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), kept)
        self.values[n.name] = kept
        return result

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if isinstance(value, Tensor) and not self.real:
            return _meta(value)
        if isinstance(value, nn.Module):
            if id(value) not in self.twins:
                self.twins[id(value)] = _evaluating_twin(value, real=self.real)
            return self.twins[id(value)]
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = fx.Interpreter.fetch_attr(self, target)
        shape = None if self.real or kwargs else known_shape(module, args)
        if shape is not None:
            return torch.empty(shape, dtype=args[0].dtype, device="meta")
        return self.fetch_attr(target)(*args, **kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not self.real and target in _SAME_SHAPE and isinstance(args[0], Tensor):
            others = [a.shape for a in args[1:] if isinstance(a, Tensor)]
            if all(shape == args[0].shape for shape in others):
                return torch.empty(args[0].shape, dtype=args[0].dtype, device="meta")
        return super().call_function(target, args, kwargs)


# torch's own rules for these run through its Python decompositions, at 1 to 10 ms a call.
_SAME_SHAPE = {
    *ELEMENTWISE_FUNCTIONS.values(), operator.add, operator.mul, torch.add, torch.mul
}  # fmt: skip
_SAME_SHAPE_LAYERS = (*ELEMENTWISE_MODULES, *PER_CHANNEL_MODULES)


def known_shape(module: nn.Module, args: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The shape that a common layer gives, None where it is not written down here."""
    kind = layer_type(module)
    if len(args) != 1 or not isinstance(args[0], Tensor):
        return None
    shape = tuple(args[0].shape)
    if kind in _SAME_SHAPE_LAYERS:
        return shape
    if kind is nn.Linear:
        assert isinstance(module, nn.Linear)
        return (*shape[:-1], module.out_features)
    if kind is not nn.Conv2d or len(shape) != 4:
        return None
    assert isinstance(module, nn.Conv2d)
    if isinstance(module.padding, str):
        return None
    pairs = zip(
        shape[2:], module.kernel_size, module.stride, module.padding, module.dilation, strict=True
    )
    sides = [(n + 2 * int(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in pairs]
    return (shape[0], module.out_channels, *sides) if min(sides) > 0 else None


def _evaluating_twin(module: nn.Module, *, real: bool) -> nn.Module:
    """A copy in evaluation mode that shares its tensors, or has empty ones on the meta device."""
    twin = object.__new__(type(module))  # copy.copy refuses parametrised layers
    twin.__dict__ = dict(module.__dict__)
    keep = (lambda t: t) if real else _meta
    twin._parameters = {k: None if v is None else keep(v) for k, v in module._parameters.items()}
    twin._buffers = {k: None if v is None else keep(v) for k, v in module._buffers.items()}
    twin._modules = {
        k: None if m is None else _evaluating_twin(m, real=real) for k, m in module._modules.items()
    }
    twin.training = False
    return twin


def _meta(tensor: Tensor) -> Any:
    empty = torch.empty_like(tensor, device="meta")
    if not isinstance(tensor, nn.Parameter):
        return empty
    return nn.Parameter(empty, requires_grad=tensor.requires_grad)  # matmul looks at it


def uncounted_macs(
    graph_module: fx.GraphModule, example_input: Tensor, counted: set[str]
) -> dict[str, int]:
    """Per node MACs for one image of operators that no rule knows (opaque layers, attention).

    Args:
        example_input: one image (1, ...).
        counted: the mixing nodes whose MACs are known.
    """
    called = [n for n in graph_module.graph.nodes if n.op.startswith("call_")]
    families = {n.name: family_of(n, module_of(graph_module, n)) for n in called}
    unknown = {
        name
        for name, family in families.items()
        if family is Family.UNKNOWN or (family is Family.MIX and name not in counted)
    }
    if not unknown:
        return {}
    try:
        empty = torch.empty(example_input.shape, dtype=example_input.dtype, device="meta")
        counter = _Counter(graph_module, unknown, real=False)
        counter.record(empty)
    except (NotImplementedError, RuntimeError):  # a part of it looks at values
        counter = _Counter(graph_module, unknown, real=True)
        counter.record(example_input)
    return {name: macs for name, macs in counter.macs.items() if macs}


class _Counter(_Recorder):
    """Runs every operator as torch does: how a product is computed depends on strides."""

    def __init__(self, graph_module: fx.GraphModule, nodes: set[str], *, real: bool) -> None:
        super().__init__(graph_module, real=real)
        self.nodes = nodes
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.nodes:
            return super().run_node(n)
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        counts = counter.get_flop_counts().get("Global", {})
        self.macs[n.name] = int(sum(f for aten, f in counts.items() if aten in COUNTED)) // 2
        return result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.fetch_attr(target)(*args, **kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return fx.Interpreter.call_function(self, target, args, kwargs)
