"""First stage, part: operators that change their argument in place, made functional.

A branch that starts with `ReLU(inplace=True)` on the shortcut makes block removal silently wrong
otherwise: the shortcut would no longer be rectified.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from polarprune.errors import Refused
from polarprune.graph.operator_tables import DROPOUT_MODULES
from polarprune.graph.operators import module_of

_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_VIEWS = {
    "view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous",
    "getitem", "chunk", "split", "expand", "detach", "unbind", "narrow", "view_as", "expand_as",
    "unflatten", "swapaxes", "movedim", "select", "unfold",
}  # fmt: skip


def functionalise(graph_module: fx.GraphModule) -> bool:
    """Rewrite in place; later readers of a changed value read the operator's result.

    Returns:
        Whether a layer was among them that does nothing in evaluation mode.

    Raises:
        Refused: the value is also read through a view of it, later.
    """
    order = {node: place for place, node in enumerate(graph_module.graph.nodes)}
    modules = {n: module_of(graph_module, n) for n in graph_module.graph.nodes}
    in_place = {n for n, module in modules.items() if getattr(module, "inplace", False) is True}
    for node in in_place:
        setattr(modules[node], "inplace", False)  # noqa: B010
    by_mode = any(isinstance(modules[node], DROPOUT_MODULES) for node in in_place)
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
    return by_mode


def _make_out_of_place(node: fx.Node) -> bool:
    """Rewrite a function or method that changes its first argument; whether it did."""
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):  # torch.relu_, F.leaky_relu_
            plain = getattr(F, name[:-1], None) or getattr(torch, name[:-1], None)
            if plain is None:
                raise _in_place_only(node, name)
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
            plain = name.removesuffix("_")
            if not callable(getattr(torch.Tensor, plain, None)):
                raise _in_place_only(node, name)
            node.target = plain
            return True
    return False


def _in_place_only(node: fx.Node, name: str) -> Refused:
    return Refused(f"{node.name} calls {name}, which works in place only; write it out of place")


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
