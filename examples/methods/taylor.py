"""A method of one's own, in one file: units are ranked by their first-order Taylor importance.

Molchanov et al., "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771): the squared
product of a gate (here always 1) and its gradient, averaged over batches. In this file's folder:

    polarprune train --model resnet20 --data digits --image-size 16 --method taylor:Taylor --out run
"""

import torch
from torch import Tensor, nn

from polarprune.methods import GateOutput, GateRequest, Method, Units


class TaylorGate(nn.Module):
    """Open while training; watches how much the loss would change if a unit were closed."""

    score: Tensor

    def __init__(self, units: int) -> None:
        """Nothing is known yet."""
        super().__init__()
        self.register_buffer("score", torch.zeros(units))

    def forward(self, pooled: Tensor) -> GateOutput:
        """All open; the probability is the importance, over the largest at this tensor."""
        gate = torch.ones_like(self.score, requires_grad=True)
        gate.register_hook(lambda gradient: self.score.lerp_(gradient.square(), 0.05))
        probability = self.score / self.score.max().clamp_min(1e-30)
        return GateOutput(gate.unsqueeze(0), probability, torch.ones_like(self.score))


class Taylor(Method):
    """Importance decides, the target says how many stay."""

    name = "taylor"
    thresholds = False
    watches = False

    def make_gates(self, requests: list[GateRequest], parameter_budget: int) -> list[nn.Module]:
        """Gates without parameters."""
        return [TaylorGate(request.units) for request in requests]

    def loss(self, units: Units, ratio: Tensor, target: float, progress: float) -> Tensor:
        """Nothing is learned."""
        return torch.zeros_like(ratio)
