"""Several processes that train one network: what they agree on, and what they average.

Started by torchrun. Every rank holds the whole network and sees its part of each batch; gradients
are averaged before the optimizer's step, and what gates say about a batch is what they say about
the parts of all ranks. So all ranks take the same decisions and cut at the same step.

Without a process group every function here returns what it was given.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polarprune.errors import ConfigError


def rank_and_count() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) without a group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def rank_of_environment() -> int:
    """The rank that torchrun started this process as; 0 for a lone one."""
    return int(os.environ.get("RANK", "0"))


def join_ranks(device: torch.device) -> bool:
    """Join the group that torchrun has prepared; False where this is a lone process.

    Raises:
        ConfigError: more ranks than devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return False
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {local} has no GPU, there are {torch.cuda.device_count()}; start as many "
                "processes as there are GPUs, or use --device cpu"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True


def leave_ranks() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of all ranks' tensors; differentiable.

    Once gradients are averaged over ranks, a loss of such a mean has the gradient that it has in
    one process with the whole batch.
    """
    if rank_and_count()[1] == 1:
        return value
    mean: Tensor = _Mean.apply(value)
    return mean


class _Mean(torch.autograd.Function):
    """Forward the mean over ranks; backward the mean of what all ranks make of it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _reduced(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _reduced(grad)


def _reduced(value: Tensor) -> Tensor:
    mean = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(mean)
    mean /= rank_and_count()[1]
    return mean


def as_rank_0_has_it(value: Tensor) -> Tensor:
    """Rank 0's tensor, on every rank; shapes and dtypes must be alike."""
    if rank_and_count()[1] == 1:
        return value
    shared = value.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(shared, 0)
    return shared


def copy_from_rank_0(net: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0.

    A factory may draw them from a generator that no seed of ours reaches.
    """
    if rank_and_count()[1] > 1:
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.data.copy_(as_rank_0_has_it(tensor))


def sum_over_ranks(value: float, device: torch.device) -> float:
    """The sum of all ranks' numbers."""
    mean = mean_over_ranks(torch.tensor(value, dtype=torch.float64, device=device))
    return float(mean) * rank_and_count()[1]


def wait_for_all_ranks() -> None:
    """Return when every rank has come here."""
    if rank_and_count()[1] > 1:
        dist.barrier()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all ranks; call between backward and step.

    A parameter without a gradient here must have none anywhere.
    """
    if rank_and_count()[1] == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    _average(gradients)


def average_buffers(net: nn.Module) -> None:
    """Replace every floating-point buffer by its mean over all ranks.

    Running statistics are each rank's own while they train; evaluation, cuts and files need one.
    """
    if rank_and_count()[1] > 1:
        _average([buffer for buffer in net.buffers() if buffer.is_floating_point()])


def _average(tensors: list[Tensor]) -> None:
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        dist.all_reduce(flat)
        flat /= rank_and_count()[1]
        parts = torch.split(flat, [tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
