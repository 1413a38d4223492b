"""Fifth stage: drop the operators that a cut has made pointless.

Cases: (1) identities and dropouts with p = 0; (2) a padding by nothing; (3) a concatenation of one
tensor; (4) a ReLU of what cannot be negative; (5) what nobody reads.
"""

import torch
from torch import fx, nn
from torch.nn import functional as F

from polarprune.graph.dead_code import drop_dead
from polarprune.graph.movement import pad_amounts
from polarprune.graph.operators import is_addition, module_of

_RELU_FUNCTIONS = {"relu": F.relu, "torch.relu": torch.relu}
# Keep the sign of what they are given.
_SIGN_KEEPING_MODULES = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
)
_SIGN_KEEPING_TARGETS = frozenset(
    {"flatten", "cat", "reshape", "permute", "transpose", "getitem", "squeeze", "unsqueeze"}
    | {"view", "contiguous", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean"}
)


def clean_up(graph_module: fx.GraphModule) -> bool:
    """Remove pointless operators in place; whether there were any. Exactness: bitwise.

    The code of the graph is not written anew: call recompile() when all is done.
    """
    changed = False
    for node in list(graph_module.graph.nodes):
        stand_in = _stand_in(graph_module, node)
        if stand_in is not None:
            node.replace_all_uses_with(stand_in)
            graph_module.graph.erase_node(node)
            changed = True
    changed |= drop_dead(graph_module.graph)
    return changed


def _stand_in(root: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The node that gives the same value, or None."""
    module = module_of(root, node)
    first = node.all_input_nodes[0] if node.all_input_nodes else None
    if first is None:
        return None
    if isinstance(module, nn.Identity) or getattr(module, "p", None) == 0:
        return first  # case 1
    if node.target is F.pad and not any(pad_amounts(node)):
        return first  # case 2
    if node.target in (torch.cat, torch.concat) and len(node.all_input_nodes) == 1:
        operands = node.args[0]
        return first if isinstance(operands, tuple | list) and len(operands) == 1 else None
    if _is_relu(node, module) and _never_negative(root, first):
        return first  # case 4
    return None


def _is_relu(node: fx.Node, module: nn.Module | None) -> bool:
    return type(module) is nn.ReLU or (
        node.op == "call_function" and node.target in _RELU_FUNCTIONS.values()
    )


def _never_negative(root: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(root, node)
    if _is_relu(node, module) or type(module) in (nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid):
        return True
    if node.target in (F.relu6, torch.sigmoid, F.hardsigmoid):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    keeps = type(module) in _SIGN_KEEPING_MODULES or (
        node.op != "call_module" and name in _SIGN_KEEPING_TARGETS
    )
    zero_pad = node.target is F.pad and len(node.args) == 2 and not node.kwargs
    if not (keeps or zero_pad or is_addition(node)) or not node.all_input_nodes:
        return False
    return all(_never_negative(root, source) for source in node.all_input_nodes)


def drop_unused(graph_module: fx.GraphModule) -> None:
    """Layers that are not called any more, and parameters of the graph that nobody reads."""
    graph_module.delete_all_unused_submodules()
    read = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    called = {str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"}
    names = [name for name, _ in graph_module.named_parameters()]
    names += [name for name, _ in graph_module.named_buffers()]
    for name in names:
        owner, _, child = name.rpartition(".")
        parts = owner.split(".")
        nested = any(".".join(parts[: i + 1]) in called for i in range(len(parts)))
        if not nested and name not in read:
            delattr(graph_module.get_submodule(owner), child)
