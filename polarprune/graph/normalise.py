"""First stage: trace a network into a functional graph that computes exactly the same.

What it does, in order: trace with torch.fx; make in-place operators functional (a branch that
starts with `ReLU(inplace=True)` on the shortcut makes block removal silently wrong otherwise);
lower `F.dropout` to a module; drop shape assertions; compare with the untraced network, in
evaluation and in training mode, in float64.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torchvision.ops import StochasticDepth

from polarprune.errors import Refused
from polarprune.graph.operators import DROPOUT_MODULES

# Traced and untraced run the same kernels on the same float64 numbers; only a different order of
# evaluation could differ, and tracing does not change it.
TRACE_RTOL = 1e-12

_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    F.relu_: F.relu,
}
_VIEWS = {
    "view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous",
    "getitem", "chunk", "split", "expand",
}  # fmt: skip
_LEAVES = (StochasticDepth,)


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


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)


def normalise(net: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """A functional graph of the network, with its own copy of the parameters.

    Args:
        net: left unmodified.
        example_input: a batch (n, ...) in the network's dtype and on its device.

    Raises:
        Refused: the network cannot be traced, or tracing changed what it computes.
    """
    owned = copy.deepcopy(net)
    if isinstance(owned, fx.GraphModule):
        graph_module = owned
    else:
        try:
            # Traced for evaluation; _verify then refuses what computes otherwise in training.
            graph_module = fx.GraphModule(owned, _Tracer().trace(owned.eval()))
        except Exception as error:
            # fx raises anything the user's forward raises on a proxy.
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Refused(
                f"{type(net).__name__} cannot be traced by torch.fx: {line}; "
                "remove Python control flow that depends on tensor values"
            ) from error
    _drop_assertions(graph_module.graph)
    _functionalise(graph_module)
    _lower_dropout(graph_module)
    graph_module.graph.lint()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    graph_module.train(net.training)
    _verify(net, graph_module, example_input)
    return graph_module


def _drop_assertions(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        node.type = None  # annotations of the user's forward mean nothing in a file
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _functionalise(graph_module: fx.GraphModule) -> None:
    order = {node: place for place, node in enumerate(graph_module.graph.nodes)}
    for node in list(graph_module.graph.nodes):
        if not _make_out_of_place(graph_module, node):
            continue
        mutated = node.args[0]
        assert isinstance(mutated, fx.Node)
        for alias in _aliases(mutated) - {mutated, node}:
            if any(order[user] > order[node] for user in alias.users if user is not node):
                raise Refused(
                    f"{node.name} changes {mutated.name} in place while {alias.name}, which shares "
                    "its memory, is read later; write it out of place"
                )
        for user in list(mutated.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(mutated, node)


def _make_out_of_place(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010
            return True
        return False
    if node.op == "call_function":
        if node.target in _OUT_OF_PLACE:
            node.target = _OUT_OF_PLACE[node.target]
            return isinstance(node.args[0], fx.Node)
        if node.kwargs.get("inplace") is True:
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
            return True
        # F.relu(x, True): the flag given by position
        if node.target in (F.relu, F.relu6, F.hardswish, F.silu) and len(node.args) > 1:
            in_place = bool(node.args[1])
            node.args = node.args[:1]
            return in_place
        return False
    if node.op == "call_method":
        name = str(node.target)
        if name.endswith("_") and not name.endswith("__"):
            node.target = name.removesuffix("_")
            return True
    return False


def _aliases(node: fx.Node) -> set[fx.Node]:
    """Every node that may share memory with this one, itself included."""
    found, todo = {node}, [node]
    while todo:
        current = todo.pop()
        neighbours = [user for user in current.users if _is_view(user)]
        if _is_view(current):
            neighbours += [arg for arg in current.all_input_nodes]
        for other in neighbours:
            if other not in found:
                found.add(other)
                todo.append(other)
    return found


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_module":
        module = node.graph.owning_module and node.graph.owning_module.get_submodule(
            str(node.target)
        )
        # In evaluation mode these hand back their very input.
        return isinstance(module, (nn.Identity, nn.Flatten, *DROPOUT_MODULES))
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in _VIEWS


def _lower_dropout(graph_module: fx.GraphModule) -> None:
    """F.dropout bakes `training` at trace time; a module follows train() and eval()."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and node.target is F.dropout:
            p, training = _dropout_arguments(*node.args[1:], **node.kwargs)
            if training:
                raise Refused(f"{node.name} drops values in evaluation mode too: not a function")
            name = f"dropout_{node.name}"
            graph_module.add_submodule(name, nn.Dropout(float(p)))
            with graph_module.graph.inserting_before(node):
                lowered = graph_module.graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(lowered)
            graph_module.graph.erase_node(node)


def _dropout_arguments(
    p: float = 0.5, training: bool = True, inplace: bool = False, **_: Any
) -> tuple[float, bool]:
    """The arguments of F.dropout with its own defaults (`inplace` was made functional before)."""
    return p, training


def _verify(net: nn.Module, traced: nn.Module, example_input: Tensor) -> None:
    for training in (False, True):
        expected = forward_float64(net, example_input, training)
        got = forward_float64(traced, example_input, training)
        error = relative_error(expected, got)
        if not error <= TRACE_RTOL:
            mode = "training" if training else "evaluation"
            raise Refused(
                f"tracing changes what {type(net).__name__} computes in {mode} mode (relative "
                f"error {error:.1e}); remove control flow that depends on self.training"
            )


def forward_float64(net: nn.Module, inputs: Tensor, training: bool) -> Any:
    """The outputs of a float64 copy on the inputs, dropouts off; the network is left as it was.

    A single image is doubled in training mode, since batch statistics need two values a channel.
    """
    twin = copy.deepcopy(net).double().train(training)
    for module in twin.modules():
        if isinstance(module, DROPOUT_MODULES):
            module.eval()
    x = inputs.detach().double()
    if training and len(x) == 1:
        x = torch.cat([x, x.flip(-1)])
    with torch.no_grad(), _NoDropout():
        return twin(x)


class _NoDropout(TorchFunctionMode):
    """F.dropout as the identity: random numbers would hide any comparison."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.dropout:
            return args[0]
        return func(*args, **(kwargs or {}))


def relative_error(expected: Any, got: Any) -> float:
    """Largest absolute difference over the largest magnitude, over all tensors of two pytrees.

    A difference in structure or shape, or a value that is not finite on one side only, is infinite.
    """
    left, left_spec = pytree.tree_flatten(expected)
    right, right_spec = pytree.tree_flatten(got)
    if left_spec != right_spec:
        return float("inf")
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if not isinstance(a, Tensor):
            continue
        if a.shape != b.shape or not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        finite = a.isfinite()
        if finite.any():
            scale = float(a[finite].abs().max())
            difference = float((a[finite] - b[finite]).abs().max())
            worst = max(worst, difference / scale if scale > 0 else difference)
    return worst
