"""The control that every method must beat: decisions drawn at random, at the same target."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polarprune.methods.protocol import GateOutput, GateRequest, Method, Units


class RandomGate(nn.Module):
    """Open while training; its scores, drawn once, decide which units stay at a given cost."""

    score: Float[Tensor, " g"]

    def __init__(self, request: GateRequest) -> None:
        """Draw one score in 0..1 a unit from torch's global generator."""
        super().__init__()
        self.register_buffer("score", torch.rand(request.units))

    def forward(self, pooled: Float[Tensor, "n c"]) -> GateOutput:
        """All open; the probability is the score."""
        ones = torch.ones_like(self.score)
        return GateOutput(ones.unsqueeze(0), self.score, ones)


class RandomControl(Method):
    """Random decisions at the target (ours)."""

    name = "random"
    thresholds = False
    watches = False

    def make_gates(self, requests: list[GateRequest], parameter_budget: int) -> list[nn.Module]:
        """Gates without parameters."""
        return [RandomGate(request) for request in requests]

    def loss(
        self, units: Units, ratio: Float[Tensor, ""], target: float, progress: float
    ) -> Float[Tensor, ""]:
        """Nothing is learned."""
        return torch.zeros_like(ratio)
