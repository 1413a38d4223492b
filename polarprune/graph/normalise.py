"""First stage: trace a network into a functional graph that computes exactly the same.

What it does, in order: trace with torch.fx; make in-place operators functional (a branch that
starts with `ReLU(inplace=True)` on the shortcut makes block removal silently wrong otherwise);
lower `F.dropout` to a module; drop shape assertions; compare with the untraced network, in
evaluation and in training mode, in float64.
"""

import copy
import inspect
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
from polarprune.graph.operators import DROPOUT_MODULES, module_of

# Traced and untraced run the same kernels on the same float64 numbers; only a different order of
# evaluation could differ, and tracing does not change it.
TRACE_RTOL = 1e-12

_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_VIEWS = {
    "view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous",
    "getitem", "chunk", "split", "expand",
}  # fmt: skip
_LEAVES = (StochasticDepth,)
_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
}


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
    _refuse_hooks(net)
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
    _name_no_operands(graph_module.graph)
    _functionalise(graph_module)  # before dead code goes: a result in place may have no reader
    _drop_assertions(graph_module.graph)
    _lower_dropouts(graph_module)
    graph_module.graph.lint()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    graph_module.train(net.training)
    _verify(net, graph_module, example_input)
    return graph_module


def _refuse_hooks(net: nn.Module) -> None:
    """A hook may change what its layer computes (old weight_norm does); a cut layer loses it."""
    for name, module in net.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Refused(
                f"layer {name or type(net).__name__} has a forward hook, which a cut would lose; "
                "remove it first (torch.nn.utils.remove_weight_norm, handle.remove())"
            )


def _name_no_operands(graph: fx.Graph) -> None:
    """`torch.cat(tensors=...)`, `F.pad(input=...)`: the operand goes where the rules look."""
    for node in graph.nodes:
        for key in ("input", "tensors"):
            if node.op == "call_function" and not node.args and key in node.kwargs:
                node.args = (node.kwargs[key],)
                node.kwargs = {k: v for k, v in node.kwargs.items() if k != key}


def _drop_assertions(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        node.type = None  # annotations of the user's forward mean nothing in a file
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _functionalise(graph_module: fx.GraphModule) -> None:
    order = {node: place for place, node in enumerate(graph_module.graph.nodes)}
    modules = {n: module_of(graph_module, n) for n in graph_module.graph.nodes}
    in_place = {n for n, module in modules.items() if getattr(module, "inplace", False) is True}
    for node in in_place:
        setattr(modules[node], "inplace", False)  # noqa: B010
    for node in list(graph_module.graph.nodes):
        if node not in in_place and not _make_out_of_place(node):
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


def _make_out_of_place(node: fx.Node) -> bool:
    """Rewrite a function or method that changes its first argument; whether it did."""
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):  # torch.relu_, F.leaky_relu_
            plain = getattr(F, name[:-1], None) or getattr(torch, name[:-1], None)
            if plain is None:
                raise Refused(f"{node.name} works in place by {name}; write it out of place")
            node.target = plain
            return True
        if node.target in _OUT_OF_PLACE:
            node.target = _OUT_OF_PLACE[node.target]
            return isinstance(node.args[0], fx.Node)
        if node.kwargs.get("inplace") is True:
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
            return True
        place = _place_of_flag(node.target)
        if place is not None and len(node.args) > place:  # F.relu(x, True)
            in_place = bool(node.args[place])
            node.args = node.args[:place]  # the flag is the last argument of all of them
            return in_place
        return False
    if node.op == "call_method":
        name = str(node.target)
        if name.endswith("_") and not name.endswith("__"):
            node.target = name.removesuffix("_")
            return True
    return False


def _place_of_flag(function: Any) -> int | None:
    """Where a function of torch.nn.functional takes `inplace`, None where it does not."""
    if getattr(function, "__module__", None) != F.__name__ or not inspect.isfunction(function):
        return None
    names = list(inspect.signature(function).parameters)
    return names.index("inplace") if "inplace" in names else None


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


def _lower_dropouts(graph_module: fx.GraphModule) -> None:
    """F.dropout bakes `training` at trace time; a module follows train() and eval()."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and node.target in _DROPOUTS:
            p, training = _dropout_arguments(*node.args[1:], **node.kwargs)
            if training:
                raise Refused(f"{node.name} drops values in evaluation mode too: not a function")
            name = f"dropout_{node.name}"
            graph_module.add_submodule(name, _DROPOUTS[node.target](float(p)))
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
    inputs = example_input.detach()
    if inputs.numel() and bool((inputs == inputs.flatten()[0]).all()):
        # Zeros would hide differences: a fresh network maps them to zeros everywhere.
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(inputs.shape, generator=generator).to(inputs)
    for training in (False, True):
        expected = forward_float64(net, inputs, training)
        got = forward_float64(traced, inputs, training)
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
    x = inputs.detach().double().clone()  # a network may work on its input in place
    if training and len(x) == 1:
        x = torch.cat([x, x.flip(-1)])
    with torch.no_grad(), _NoDropout():
        return twin(x)


class _NoDropout(TorchFunctionMode):
    """F.dropout as the identity: random numbers would hide any comparison."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
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
        finite = a.isfinite()
        same = a.shape == b.shape and torch.equal(finite, b.isfinite())
        if not same or not torch.equal(torch.nan_to_num(a[~finite]), torch.nan_to_num(b[~finite])):
            return float("inf")
        if finite.any():
            scale = float(a[finite].abs().max())
            difference = float((a[finite] - b[finite]).abs().max())
            worst = max(worst, difference / scale if scale > 0 else difference)
    return worst
