"""How a folded network is compared with the one it was folded from."""

import torch
from torch import Tensor, fx, nn

from polarprune_export.folding import NORMS, fold_batchnorms

# Folding reorders one product and one sum per layer; float64 keeps 16 digits of each.
FLOAT64_TOLERANCE = 1e-12


def randomised(net: nn.Module) -> fx.GraphModule:
    generator = torch.Generator().manual_seed(3)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.is_floating_point():
            low = 0.5 if name.endswith("running_var") else -1.0
            tensor.data = torch.empty(tensor.shape).uniform_(low, 2.0, generator=generator)
    return fx.symbolic_trace(net.eval())


def norms_left(net: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in net.modules())


def error_of_folding(net: fx.GraphModule, x: Tensor) -> float:
    net, x = net.double(), x.double()
    folded, _ = fold_batchnorms(net, x)
    with torch.no_grad():
        before, after = net(x), folded(x)
    return float((before - after).abs().max() / before.abs().max())
