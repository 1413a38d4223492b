"""What gates compute on whole activations: mean and peak over space, a product with its gradient.

Torch reduces bfloat16 on a CPU by way of float32 copies, in about three times the time of the
matrix products that stand in for it here (measured on AVX-512 with AMX: 0.14 ms against 0.45 ms for
the mean of 128 x 16 x 32 x 32). Elsewhere its own reductions are taken.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d


def mean_of_channels(x: Float[Tensor, "n ..."], axis: int) -> Float[Tensor, "n c"]:
    """Mean over all axes but the batch's and the channels' (ours)."""
    space = tuple(a for a in range(1, x.dim()) if a != axis)
    if not space:
        return x
    if not _by_products(x):
        return x.mean(dim=space)
    flat = x.movedim(axis, 1).flatten(2)
    return flat @ flat.new_full((flat.shape[2],), 1 / flat.shape[2])


def peaks_of_channels(x: Float[Tensor, "n ..."], axis: int) -> Float[Tensor, "n c"]:
    """Largest magnitude over all axes but the batch's and the channels'.

    On a CPU torch's reduction over the pixels of a channels-last image is slow where channels are
    few (9 ms for 128 x 16 x 32 x 32 in bfloat16, pooling 1 ms); everywhere else pooling is.
    """
    space = tuple(a for a in range(1, x.dim()) if a != axis)
    if not space:
        return x.abs()
    if axis == 1 and x.dim() == 4 and x.stride(1) == 1 and x.numel() and x.device.type == "cpu":
        return adaptive_max_pool2d(x.abs(), 1).flatten(1)
    return x.abs().amax(space)


def apply_gate(x: Float[Tensor, "n ..."], values: Float[Tensor, "k ..."]) -> Float[Tensor, "n ..."]:
    """X times gate values; where one value is for everything and known, nothing is multiplied.

    Args:
        values: (n or 1, 1 or c in one axis and 1 in the others), 0 or 1.
    """
    product: Tensor = _Gated.apply(x, values.to(x.dtype))
    return product


class _Gated(torch.autograd.Function):
    """A product that is nothing to compute for the open ones, and a gradient of few passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(x, values)
        if _is_open(values):
            return x.view_as(x)
        return x * values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, values = ctx.saved_tensors
        needs_x, needs_values = ctx.needs_input_grad
        grad_x = grad_values = None
        if needs_x:
            grad_x = grad if _is_open(values) else grad * values
        if needs_values:
            grad_values = _summed_to(grad, x, values)
        return grad_x, grad_values


def _is_open(values: Tensor) -> bool:
    """One value for all that is 1; only asked where it can be read without waiting."""
    if values.numel() != 1 or values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(values.detach() == 1)


def _summed_to(grad: Tensor, x: Tensor, values: Tensor) -> Tensor:
    """The sum of grad * x over every axis that values has not."""
    channels = [axis for axis in range(1, x.dim()) if values.shape[axis] != 1]
    if not _by_products(x):
        return (grad * x).sum_to_size(values.shape)
    if not channels and x.is_contiguous(memory_format=torch.channels_last):
        # Both in the order in which they lie: no copy.
        flat = [t.permute(0, 2, 3, 1).reshape(len(x), 1, -1) for t in (grad, x)]
        each = torch.bmm(flat[0], flat[1].transpose(1, 2)).reshape(-1, *[1] * (x.dim() - 1))
        return each.sum_to_size(values.shape)
    if len(channels) == 1:
        [axis] = channels
        flat_product = (grad * x).movedim(axis, 1).flatten(2)
        summed = flat_product @ flat_product.new_ones(flat_product.shape[2])
        shape = [1] * x.dim()
        shape[0], shape[axis] = summed.shape
        return summed.reshape(shape).sum_to_size(values.shape)
    return (grad * x).sum_to_size(values.shape)


def _by_products(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.dim() > 2
