"""First stage: trace a network into a functional graph that computes exactly the same.

What it does, in order: trace with torch.fx (tracing.py); make in-place operators functional
(in_place.py); lower functions with weights, dropouts and layers from outside torch.nn to plain
layers (plain_layers.py); drop shape assertions; write sizes out (sizes.py) and name channel
shuffles (shuffles.py); compare with the untraced network, in evaluation and in training mode
(verification.py).
"""

import copy

import torch
from torch import Tensor, fx, nn

from polarprune.errors import Refused, first_line
from polarprune.graph.acceptance import refuse_own_modes, refuse_what_cannot_be_traced
from polarprune.graph.comparing import forward_float64
from polarprune.graph.dead_code import drop_dead
from polarprune.graph.in_place import functionalise
from polarprune.graph.operators import operator_name
from polarprune.graph.plain_layers import PlainLayers, lower_same_padding
from polarprune.graph.shapes import run_for_values
from polarprune.graph.shuffles import name_shuffles
from polarprune.graph.sizes import write_sizes_out
from polarprune.graph.tracing import trace
from polarprune.graph.verification import verify_trace

# What the rules read by position.
_SIZES = {
    "unflatten": ("dim", "sizes"), "expand": ("size",), "reshape": ("shape",), "view": ("size",),
    "permute": ("dims",),
}  # fmt: skip


def normalise(net: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """A functional graph of the network, with its own copy of the parameters.

    Args:
        net: left unmodified.
        example_input: a batch (n, ...) in the network's dtype and on its device.

    Raises:
        Refused: the network cannot be traced, or tracing changed what it computes.
    """
    refuse_what_cannot_be_traced(net, example_input)
    try:
        return _normalise(net, example_input)
    except Refused:
        raise
    except Exception as error:
        _refuse_failing(net, example_input, error)
        raise


def _normalise(net: nn.Module, example_input: Tensor) -> fx.GraphModule:
    owned = _copy(net)
    refuse_own_modes(owned)
    fresh = {id(p): p._version for p in owned.parameters()}
    fixed_size = False
    if isinstance(owned, fx.GraphModule):
        graph_module = owned
    else:
        graph_module, fixed_size = trace(owned, example_input)
    graph = graph_module.graph
    _name_no_operands(graph)
    changed = functionalise(
        graph_module
    )  # before dead code goes: a result in place may have no reader
    _drop_assertions(graph)
    changed |= PlainLayers(graph_module, owned).lower()
    fixed_size |= _needs_shapes(graph_module, example_input)
    graph.lint()
    graph_module.delete_all_unused_submodules()
    graph_module = fx.GraphModule(graph_module, graph)
    _set_modes(graph_module, net)
    verify_trace(
        net, graph_module, example_input, fresh, may_shrink=not fixed_size,
        only_training=not changed,
    )  # fmt: skip
    return graph_module


def _needs_shapes(graph_module: fx.GraphModule, example_input: Tensor) -> bool:
    """The steps that look at shapes; whether the graph is tied to the example's size now."""
    graph = graph_module.graph
    names = {operator_name(node) for node in graph.nodes if node.op.startswith("call_f")}
    names |= {operator_name(node) for node in graph.nodes if node.op == "call_method"}
    if not names & {"getattr", "size", "transpose", "permute", "swapaxes", "pad_same"}:
        return False
    values = run_for_values(graph_module, example_input[:1].detach())
    write_sizes_out(graph, values)
    fixed_size = lower_same_padding(graph_module, values)
    name_shuffles(graph, values)
    return fixed_size


def _copy(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net)
    except Exception as error:  # a tensor of the last forward, a lock, an open file
        raise Refused(
            f"{type(net).__name__} cannot be copied: {first_line(error)}; let no module keep a "
            "result of its last forward"
        ) from error


def _refuse_failing(net: nn.Module, example_input: Tensor, error: Exception) -> None:
    """Say so where the network itself cannot take the example."""
    try:
        forward_float64(net, example_input, training=False)
    except Exception as own:
        raise Refused(
            f"{type(net).__name__} cannot take the example input {tuple(example_input.shape)}: "
            f"{first_line(own)}; mend its forward(), or give images of another size (--image-size "
            "makes squares; a factory's attribute input_size = (3, height, width) anything)"
        ) from error


def _set_modes(graph_module: fx.GraphModule, net: nn.Module) -> None:
    """Every layer trains or not as it did in the network (frozen batch norms)."""
    modes = {name: module.training for name, module in net.named_modules()}
    for name, module in graph_module.named_modules():
        module.training = modes.get(name, net.training)


def _name_no_operands(graph: fx.Graph) -> None:
    """`torch.cat(tensors=...)`, `F.pad(input=...)`: the operand goes where the rules look.

    And `view`, which depends on how a tensor lies in memory, is written `reshape`: of one channel
    alone, `contiguous()` leaves another layout than of many.
    """
    for node in graph.nodes:
        given = (*node.args, *node.kwargs.values())
        by_dtype = any(isinstance(argument, torch.dtype) for argument in given)
        if node.op == "call_method" and node.target == "view" and not by_dtype:
            node.target = "reshape"
        for key in ("input", "tensors"):
            if node.op.startswith("call_") and not node.args and key in node.kwargs:
                node.args = (node.kwargs[key],)
                node.kwargs = {k: v for k, v in node.kwargs.items() if k != key}
        if node.op in ("call_function", "call_method") and "axis" in node.kwargs:
            node.kwargs = {"dim" if k == "axis" else k: v for k, v in node.kwargs.items()}
        for key in _SIZES.get(operator_name(node), ()):
            if key in node.kwargs:
                node.args = (*node.args, node.kwargs[key])
                node.kwargs = {k: v for k, v in node.kwargs.items() if k != key}


def _drop_assertions(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        node.type = None  # annotations of the user's forward mean nothing in a file
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)
    drop_dead(graph)
