"""Random networks that carry a signal: nothing is zero, nothing dies, nothing explodes.

A fresh network hides errors: zero-initialised last norms close every block, layer scales of 1e-6
make branches invisible, biases of 0 and weights of 1 make all channels alike. And statistics drawn
at random do not fit what flows through a deep network, whose outputs then are a constant.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torchvision.ops import StochasticDepth

_DROPOUTS = {
    nn.functional.dropout,
    nn.functional.dropout1d,
    nn.functional.dropout2d,
    nn.functional.dropout3d,
}
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def prepare(net: nn.Module, images: Tensor, seed: int) -> None:
    """Draw what is constant in a fresh network, then fit its batch statistics to these images.

    The statistics are then disturbed, so that evaluation and training mode differ. In place.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.is_floating_point() and float(parameter.max() - parameter.min()) == 0:
                _draw(name, parameter, generator)
    _fit_statistics(net, images, generator)


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Parameters that hold one value throughout: biases, norm weights, layer scales, gains."""
    wide = [size for size in parameter.shape if size > 1]
    if name.endswith("bias"):
        # Mostly positive, so that one channel alone passes a ReLU now and then.
        parameter.uniform_(-0.2, 0.6, generator=generator)
    elif len(wide) > 1:
        fan_in = math.prod(parameter.shape[1:])
        parameter.normal_(0, fan_in**-0.5, generator=generator)
    else:
        parameter.uniform_(0.5, 1.5, generator=generator)


def _fit_statistics(net: nn.Module, images: Tensor, generator: torch.Generator) -> None:
    norms = [m for m in net.modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    modes = {module: module.training for module in net.modules()}
    net.train()
    with torch.no_grad(), _NoDropout():
        net(images.clone())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        variance.clamp_(min=1e-3)
        shift = torch.empty_like(mean).uniform_(-0.3, 0.3, generator=generator)
        mean.add_(shift * variance.sqrt())
        variance.mul_(torch.empty_like(mean).uniform_(0.7, 1.4, generator=generator))
    for module, training in modes.items():
        module.training = training


def outputs(net: nn.Module, images: Tensor, *, training: bool) -> list[Tensor]:
    """All output tensors of a copy of the network, dropouts and dropped paths off."""
    twin = copy.deepcopy(net).train(training)
    for module in twin.modules():
        leaf = not list(module.children())  # a container of that name holds norms
        if isinstance(module, StochasticDepth) or (
            leaf and "drop" in type(module).__name__.lower()
        ):
            module.eval()
    with torch.no_grad(), _NoDropout():
        leaves = pytree.tree_leaves(twin(images.clone()))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


class _NoDropout(TorchFunctionMode):
    """The dropout functions as identities."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace one call."""
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        return func(*args, **(kwargs or {}))


def largest_relative_error(expected: list[Tensor], got: list[Tensor]) -> float:
    """Largest absolute difference over the largest magnitude, the worst of all output tensors.

    Infinite where shapes differ or a value is not finite.
    """
    if [t.shape for t in expected] != [t.shape for t in got] or not expected:
        return math.inf
    worst = 0.0
    for left, right in zip(expected, got, strict=True):
        if not (bool(left.isfinite().all()) and bool(right.isfinite().all())):
            return math.inf
        scale = float(left.abs().max()) or 1.0
        worst = max(worst, float((left - right).abs().max()) / scale)
    return worst


def variation(tensors: list[Tensor]) -> float:
    """How much outputs differ from image to image, over their largest magnitude; 0 is a constant.

    NaN where a value is not finite.
    """
    least = math.inf
    for tensor in tensors:
        if not bool(tensor.isfinite().all()):
            return math.nan
        spread = float((tensor.max(dim=0).values - tensor.min(dim=0).values).max())
        least = min(least, spread / (float(tensor.abs().max()) or 1.0))
    return least
