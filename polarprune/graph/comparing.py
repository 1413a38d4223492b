"""Two networks compared: their outputs in float64 on the same inputs, random layers off."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from polarprune.graph.operator_tables import DROPOUT_MODULES

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
_RANDOM = ("DropPath", "DropBlock2d", "PatchDropout")  # timm's


def forward_float64(net: nn.Module, inputs: Tensor, training: bool) -> Any:
    """The outputs in float64 on the inputs, dropouts off; the network is left as it was.

    A single image is doubled in training mode, since batch statistics need two values a channel.
    """
    x = inputs.detach().double().clone()  # a network may work on its input in place
    if training and len(x) == 1:
        x = torch.cat([x, x.flip(-1)])
    tensors = {name: tensor.detach().double() for name, tensor in net.named_parameters()}
    for name, buffer in net.named_buffers():
        # Running statistics are written in training mode: never into the network's own.
        dtype = torch.float64 if buffer.is_floating_point() else buffer.dtype
        tensors[name] = buffer.detach().to(dtype, copy=True)
    quiet = redirect_stderr(StringIO())  # torch.fx prints where a graph fails, before it raises
    with in_mode(net, training), torch.no_grad(), NoDropout(), quiet:
        return functional_call(net, tensors, (x,))


@contextmanager
def in_mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Every layer in this mode, random ones always as in evaluation; afterwards as before."""
    modes = {module: module.training for module in net.modules()}
    try:
        for module in modes:
            random = isinstance(module, DROPOUT_MODULES) or type(module).__name__ in _RANDOM
            module.training = training and not random
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class NoDropout(TorchFunctionMode):
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
    left, left_spec = pytree.tree_flatten(_plain_dicts(expected))
    right, right_spec = pytree.tree_flatten(_plain_dicts(got))
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


def _plain_dicts(value: Any) -> Any:
    """An OrderedDict becomes a dict in a trace: the same names and values."""
    if isinstance(value, dict):
        return {key: _plain_dicts(part) for key, part in value.items()}
    return value
