"""A foreign training loop of ten steps on random images, as a user would write it."""

import torch
from torch.nn import functional as F

import polarprune
from polarprune.gates import GatedNetwork
from polarprune.networks.cifar_resnet import CifarResNet
from polarprune.onepass import OnePass, Phases

STEPS = 10
PHASES = Phases(search=0.2, settle=0.6)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(16, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 10, (16,), generator=generator)


def gated_resnet() -> GatedNetwork:
    torch.manual_seed(0)
    return polarprune.attach_gates(CifarResNet(1, 10).train(), torch.zeros(2, 3, 8, 8))


def drive_one(one: OnePass, optimizer: torch.optim.Optimizer, step: int) -> None:
    images, labels = batch(step)
    loss = F.cross_entropy(one.network(images), labels) + one.loss()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    one.step()


def drive(one: OnePass, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        drive_one(one, optimizer, step)
