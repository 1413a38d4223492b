"""Who can take over a factor on a tensor: the layers that it is a multiple of."""

from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from polarprune.graph.operator_tables import BATCH_NORMS, INSTANCE_NORMS, MIXING_MODULES
from polarprune.graph.operators import (
    attribute_of,
    is_addition,
    layer_type,
    module_of,
    operator_name,
)

_SCALED = (*MIXING_MODULES, *BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# f(c x) = c f(x) for every c above 0.
_HOMOGENEOUS_MODULES = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, StochasticDepth,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.Flatten, nn.Unflatten,
    nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle,
)  # fmt: skip
_HOMOGENEOUS_FUNCTIONS = (
    F.relu, torch.relu, F.leaky_relu, F.max_pool2d, F.avg_pool2d, F.interpolate,
    torch.flatten, torch.reshape, torch.permute, torch.transpose,
    torch.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle,
)  # fmt: skip
_HOMOGENEOUS_METHODS = ("relu", "contiguous", "view", "reshape", "flatten", "permute", "transpose")


def takers_of_factor(net: fx.GraphModule, node: fx.Node) -> list[str] | None:
    """The tensors of a network which, multiplied by a factor, multiply a node's result by it.

    Looked for backwards from the node, through what is homogeneous, a sum of which all terms can
    take the factor, and a product of which one can.

    Returns:
        Names of parameters and buffers, or None where the factor would reach something else too.
    """
    calls = Counter(str(n.target) for n in net.graph.nodes if n.op in ("call_module", "get_attr"))
    owners = Counter(
        id(tensor)
        for module in net.modules()
        for tensor in module._parameters.values()
        if tensor is not None
    )
    return _Search(net, calls, owners).takers(node)


class _Search:
    def __init__(self, net: fx.GraphModule, calls: Counter[str], owners: Counter[int]) -> None:
        self.net = net
        self.calls = calls
        self.owners = owners

    def takers(self, node: fx.Node) -> list[str] | None:
        if len(node.users) != 1 or node.op == "placeholder":
            return None
        module = module_of(self.net, node)
        if module is not None and layer_type(module) in _SCALED:
            return self._affine(str(node.target), module)
        if node.op == "get_attr":
            value = attribute_of(self.net, node)
            alone = isinstance(value, nn.Parameter) and self.owners[id(value)] == 1
            return [str(node.target)] if alone and self.calls[str(node.target)] == 1 else None
        if is_addition(node):
            terms = [self.takers(term) for term in node.all_input_nodes]
            if len(terms) == 2 and terms[0] is not None and terms[1] is not None:
                return terms[0] + terms[1]
            return None
        factors = [argument for argument in node.args if isinstance(argument, fx.Node)]
        if operator_name(node) == "mul" and len(factors) == len(node.all_input_nodes):
            return next((t for t in map(self.takers, node.all_input_nodes) if t is not None), None)
        if self._is_homogeneous(node, module) and len(node.all_input_nodes) == 1:
            return self.takers(node.all_input_nodes[0])
        return None

    def _affine(self, layer: str, module: nn.Module) -> list[str] | None:
        if module._parameters.get("weight") is None and "parametrizations" not in module._modules:
            return None
        if self.calls[layer] != 1:
            return None
        if any(self.owners[id(parameter)] != 1 for parameter in module.parameters()):
            return None
        bias = getattr(module, "bias", None) is not None
        return [f"{layer}.weight", *([f"{layer}.bias"] if bias else [])]

    def _is_homogeneous(self, node: fx.Node, module: nn.Module | None) -> bool:
        if module is not None:
            return layer_type(module) in _HOMOGENEOUS_MODULES
        if node.op == "call_function":
            return node.target in _HOMOGENEOUS_FUNCTIONS
        return node.op == "call_method" and node.target in _HOMOGENEOUS_METHODS
