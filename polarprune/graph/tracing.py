"""First stage, part: a network as a torch.fx graph.

Layers that the analysis knows are leaves; everything else is traced through. A module whose
forward cannot be traced becomes one opaque operator: its channels are pinned, the rest goes on.
"""

import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torchvision.ops import StochasticDepth

from polarprune.errors import Refused, first_line
from polarprune.graph.lost_in_a_trace import LostInATrace, lost_in_a_trace
from polarprune.graph.operator_tables import BATCH_NORMS
from polarprune.graph.shapes import run_for_values

# A network with more parts than this that cannot be traced has no part worth analysing.
_MOST_OPAQUE = 400


class Draft(fx.GraphModule):
    """A graph that is still being changed: no code is written for it, so it cannot be called."""

    def recompile(self) -> Any:
        """Nothing: the graph module that is made of it in the end has code."""
        return None


class _Proxy(fx.Proxy):
    """Records `y += x` as such; a plain Proxy falls back to `y = y + x` and hides the aliasing."""

    def _in_place(self, function: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)

    def __len__(self) -> int:
        value = self.tracer.value_of(self)  # type: ignore[attr-defined]
        if isinstance(value, Tensor):
            raise fx.proxy.TraceError("len() of a tensor is a fixed number: write x.shape[0]")
        return len(value)

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return _Attribute(self, name)


class _Attribute(fx.proxy.Attribute, _Proxy):
    """`x.shape`, whose node torch.fx makes only when it is used."""


class _Tracer(fx.Tracer):
    """Looks sizes up where Python wants to know them: to go through a shape, or to branch on one.

    What it has branched on then holds for the example's size: `fixed_size`.
    """

    def __init__(
        self, opaque: frozenset[str] | set[str] = frozenset(), example_input: Tensor | None = None
    ) -> None:
        """Without arguments to be unpickled with a graph, which calls it so."""
        super().__init__(autowrap_functions=same_padding_functions(), param_shapes_constant=True)
        self.opaque = opaque
        self.example_input = torch.empty(0) if example_input is None else example_input
        self.failed: str | None = None
        self.fixed_size = False
        self.evaluating = False  # torch.fx patches all modules while it traces

    def is_tracing(self) -> bool:
        """Whether the network runs on proxies now, and no value is looked up in between."""
        return not self.evaluating

    def value_of(self, proxy: fx.Proxy, images: int = 1) -> Any:
        """What a proxy stands for, tensors on the meta device.

        Args:
            images: how many, of the example's size.

        Raises:
            TraceError: it cannot be known before the network runs.
        """
        wanted = proxy.node  # of an attribute, made now
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self.graph, copied)
        graph.output(copied[wanted])
        example = self.example_input.expand(images, *self.example_input.shape[1:])
        self.evaluating = True
        try:
            values = run_for_values(Draft(self.root, graph), example)
        except Exception as error:
            raise fx.proxy.TraceError(f"the value of {proxy.node.name} is not known") from error
        finally:
            self.evaluating = False
        return values[copied[wanted].name]

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            value = self.value_of(obj)
            if not isinstance(value, tuple | list):
                raise
            return iter([operator.getitem(obj, place) for place in range(len(value))])

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.value_of(obj)
        if not isinstance(value, bool | int | float):
            return super().to_bool(obj)
        if bool(self.value_of(obj, images=3)) is not bool(value):
            raise fx.proxy.TraceError("a branch on the number of images")
        self.fixed_size = True
        return bool(value)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.opaque or is_known_leaf(m):
            return True
        if "forward" in m.__dict__:  # replaced on this one: it is not what its class says
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.evaluating:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:  # the innermost one is the first to see it
                self.failed = self.path_of_module(m)
            raise


def _advice(error: Exception) -> str:
    """What a user can do about it."""
    if isinstance(error, LostInATrace):
        return "move it into a module of its own: that is kept whole"
    return (
        "remove Python control flow and item assignments that depend on tensor values, and "
        "arguments of forward() beside the image"
    )


def is_known_leaf(module: nn.Module) -> bool:
    """Layers from outside torch.nn that are lowered to plain ones (plain_layers.py)."""
    if isinstance(module, StochasticDepth) or type(module).__name__ == "DropPath":
        return True
    return is_norm_with_activation(module) or parametrize.is_parametrized(module)


def is_norm_with_activation(module: nn.Module) -> bool:
    """A batch norm that ends in an activation of its own, as timm's BatchNormAct2d."""
    return (
        isinstance(module, BATCH_NORMS)
        and type(module) not in BATCH_NORMS
        and isinstance(getattr(module, "act", None), nn.Module)
        and isinstance(getattr(module, "drop", None), nn.Module)
    )


def same_padding_functions() -> tuple[Callable[..., Any], ...]:
    """Timm's padding to the size of the input, where timm is loaded: kept whole by the tracer."""
    module = sys.modules.get("timm.layers.padding")
    return () if module is None else (module.pad_same,)


def trace(owned: nn.Module, example_input: Tensor) -> tuple[fx.GraphModule, bool]:
    """The network's graph in evaluation mode, around its own layers.

    Returns:
        The graph, and whether it holds for images of the example's size only.

    Raises:
        Refused: the network itself, not only a part of it, has Python control flow on values.
    """
    opaque: set[str] = set()
    owned.eval()
    while True:
        tracer = _Tracer(opaque, example_input[:1].detach())
        try:
            with lost_in_a_trace(tracer.is_tracing):
                graph = tracer.trace(owned)
            return Draft(owned, graph), tracer.fixed_size
        except Exception as error:
            # fx raises anything the user's forward raises on a proxy.
            if tracer.failed is None or tracer.failed in opaque or len(opaque) > _MOST_OPAQUE:
                raise Refused(
                    f"{type(owned).__name__} cannot be traced by torch.fx: {first_line(error)}; "
                    f"{_advice(error)}"
                ) from error
            opaque.add(tracer.failed)


def copied_graph(graph: fx.Graph) -> fx.Graph:
    """The same operators in a graph of their own."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied
