"""A loop of somebody else's under DDP, as one of two ranks."""

import hashlib
import sys

import torch
import torch.distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from polarprune import OnePass, attach_gates, count_macs
from polarprune.networks.cifar_resnet import CifarResNet
from polarprune.onepass import Phases

STEPS, BATCH = 40, 32


def train(method: str) -> None:
    """Print the method, the kept share of the MACs, and the digest of the weights."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    images, labels = torch.randn(2 * BATCH, 3, 8, 8), torch.randint(0, 10, (2 * BATCH,))
    net = CifarResNet(1, 10)
    dense = count_macs(net, images[:2])
    gated = attach_gates(net, images[:2], method=method)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.05, momentum=0.9)
    one = OnePass(
        gated, optimizer, target=0.6 if gated.method.bounded else None, total_steps=STEPS,
        phases=Phases(search=0.1, settle=0.6),
    )  # fmt: skip
    wrapped = DistributedDataParallel(gated, find_unused_parameters=True)
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    for _ in range(STEPS):
        loss = F.cross_entropy(wrapped(images[mine]), labels[mine]) + one.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if one.step() is not None:
            wrapped = DistributedDataParallel(one.network, find_unused_parameters=True)
    small = one.finish()
    weights = torch.cat([p.detach().flatten() for p in small.parameters()]).numpy().tobytes()
    ratio = count_macs(small, images[:2]) / dense
    # One write: two ranks print into one pipe.
    sys.stdout.write(f"{method} {ratio:.4f} {hashlib.sha256(weights).hexdigest()}\n")
    sys.stdout.flush()
