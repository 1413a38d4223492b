"""Runs on digits, as one process or one rank of several; started by torchrun or imported.

    python -m torch.distributed.run --nproc-per-node 2 rank_runs.py OUT

Its start costs more than what it computes, so that all that two ranks do is done in one.

A run under `in_halves` is the slow reference of what two ranks compute: one process whose batch
norms see the two halves of each batch that two ranks would see.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ddp_loop
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from polarprune.errors import ConfigError
from polarprune.networks.cifar_resnet import CifarResNet
from polarprune.runs import training
from polarprune.runs.ranks import leave_ranks
from polarprune.runs.train_config import TrainConfig

METHODS = ("consensus", "mask-predictor")
"""Of the foreign loop."""


def batch_norm(num_classes: int = 10) -> nn.Module:
    return _drawn_anew(CifarResNet(1, num_classes))


def group_norm(num_classes: int = 10) -> nn.Module:
    net = CifarResNet(1, num_classes)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(
                net.get_submodule(parent) if parent else net, child,
                nn.GroupNorm(4, module.num_features),
            )  # fmt: skip
    return _drawn_anew(net)


def _drawn_anew(net: nn.Module) -> nn.Module:
    """What a generator that no seed of ours reaches would do: each rank starts elsewhere."""
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        generator = torch.Generator().manual_seed(rank)
        for parameter in net.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator)
    return net


for _factory in (batch_norm, group_norm):
    _factory.input_size = (3, 8, 8)  # type: ignore[attr-defined]


def _in_halves(module: nn.BatchNorm2d, x: Tensor) -> Tensor:
    if not module.training or len(x) % 2:
        return _whole(module, x)
    assert module.momentum is not None
    result = torch.empty_like(x)
    kept = []
    for half in (0, 1):
        mean, var = module.running_mean.clone(), module.running_var.clone()
        result[half::2] = F.batch_norm(
            x[half::2], mean, var, module.weight, module.bias, True, module.momentum, module.eps
        )
        kept.append((mean, var))
    with torch.no_grad():
        for place, buffer in enumerate((module.running_mean, module.running_var)):
            buffer.copy_((kept[0][place] + kept[1][place]) / 2)
        module.num_batches_tracked += 1
    return result


_whole = nn.BatchNorm2d.forward


@contextmanager
def in_halves() -> Iterator[None]:
    """Batch norms that see what each of two ranks would see of a batch."""
    nn.BatchNorm2d.forward = _in_halves  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.BatchNorm2d.forward = _whole  # type: ignore[method-assign]


def run(out: Path, network: str, batch_size: int = 128) -> None:
    """Train one of the networks above."""
    training.train(
        TrainConfig(
            model=f"rank_runs:{network}", data="digits", out=out, epochs=2, batch_size=batch_size,
            lr=0.05, precision="fp32", target=0.6,
        )
    )  # fmt: skip


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    # The first run joins the group; torch does not let a process join a second one reliably.
    training.leave_ranks = lambda: None
    try:
        run(out / "odd", "batch_norm", batch_size=33)
    except ConfigError as error:
        print(error)
    for network in ("batch_norm", "group_norm"):
        run(out / network, network)
    for method in METHODS:
        ddp_loop.train(method)
    dist.barrier()
    leave_ranks()


if __name__ == "__main__":
    main()
