"""Adaptive average pooling written as what it is for one image size, which an export fixes.

The exporter turns it into a Gather for each place where the cells overlap, or behind a permuted
tensor (ConvNeXt). Cases: (1) to one place: a mean over height and width; (2) cells of unequal
sizes: a product with a constant matrix from the left and one from the right. Even cells are an
AveragePool already.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp


def write_pooling_out(net: fx.GraphModule, example_input: Tensor) -> None:
    """Rewrites in place. Exactness: rounding (the order of summation)."""
    pools = [(node, size) for node in net.graph.nodes if (size := _output_size(node, net))]
    if not pools:
        return
    with torch.no_grad():
        ShapeProp(net).propagate(example_input)
    for node, size in pools:
        pooled = _plain_pooling(net, node, size)
        if pooled is not None:
            pooled.meta = dict(node.meta)  # a later pooling may read this one
            node.replace_all_uses_with(pooled)
            net.graph.erase_node(node)
    net.recompile()


def _plain_pooling(
    net: fx.GraphModule, node: fx.Node, size: tuple[int | None, int | None]
) -> fx.Node | None:
    """The same by other operators, None where the exporter needs none."""
    source: Any = node.args[0]
    tensor = source.meta["tensor_meta"]
    pairs = [(full, wanted or full) for full, wanted in zip(tensor.shape[-2:], size, strict=True)]
    with net.graph.inserting_before(node):
        if all(wanted == 1 for _, wanted in pairs):
            return net.graph.call_function(torch.mean, (source, (-2, -1), True))
        if all(full % wanted == 0 for full, wanted in pairs):
            return None
        rows, columns = (_matrix(*pair).to(tensor.dtype) for pair in pairs)
        left = _constant(net, f"{node.name}_rows", rows)
        right = _constant(net, f"{node.name}_columns", columns.t().contiguous())
        pooled = net.graph.call_function(torch.matmul, (source, right))
        return net.graph.call_function(torch.matmul, (left, pooled))


def _output_size(node: fx.Node, net: fx.GraphModule) -> tuple[int | None, int | None] | None:
    """What a node pools to, None where it is another operator."""
    size: Any = None
    if node.op == "call_module":
        layer = net.get_submodule(str(node.target))
        size = layer.output_size if type(layer) is nn.AdaptiveAvgPool2d else None
    elif node.op == "call_function" and node.target is F.adaptive_avg_pool2d:
        size = node.kwargs.get("output_size", node.args[1] if len(node.args) > 1 else None)
    if not node.args or size is None:
        return None
    size = (size, size) if isinstance(size, int) else size
    known = isinstance(size, tuple | list) and len(size) == 2
    return tuple(size) if known and all(s is None or isinstance(s, int) for s in size) else None


def _matrix(full: int, wanted: int) -> Tensor:
    """(wanted, full): the mean over each cell, from floor(i n / m) to ceil((i + 1) n / m)."""
    matrix = torch.zeros(wanted, full, dtype=torch.float64)
    for place in range(wanted):
        start, stop = place * full // wanted, -(-(place + 1) * full // wanted)
        matrix[place, start:stop] = 1 / (stop - start)
    return matrix


def _constant(net: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    while hasattr(net, name):
        name += "_"
    net.register_buffer(name, value)
    return net.graph.get_attr(name)
