"""Methods that exist only to be compared with: what does each idea of `consensus` add?

Importing this module registers them, so that --method takes their names.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polarprune.methods import GateOutput, GateRequest, Method, Units
from polarprune.methods.consensus import Consensus


class LogitGate(nn.Module):
    """One logit a unit, the same for every image; straight-through as in ConsensusGate."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((units,), 2.0))

    def forward(self, pooled: Float[Tensor, "n c"]) -> GateOutput:
        """Values (1, units)."""
        p = torch.sigmoid(self.logit)
        values = (p > 0.5).to(p.dtype) + (p - p.detach())
        return GateOutput(values.unsqueeze(0), p, values)


class InputIndependent(Consensus):
    """Consensus without its MLP: losses and schedule are the same."""

    name = "input-independent"

    def make_gates(self, requests: list[GateRequest], parameter_budget: int) -> list[nn.Module]:
        """One logit a unit."""
        return [LogitGate(request.units) for request in requests]


class DroppingGate(nn.Module):
    """Closes units at random, for each image anew; which ones go in the end is drawn beforehand."""

    score: Float[Tensor, " g"]
    kept: Float[Tensor, ""]

    def __init__(self, units: int) -> None:
        super().__init__()
        self.register_buffer("score", torch.rand(units))
        self.register_buffer("kept", torch.ones(()))

    def forward(self, pooled: Float[Tensor, "n c"]) -> GateOutput:
        """Values (n, units), open with probability `kept`."""
        values = torch.rand(len(pooled), len(self.score), device=pooled.device) < self.kept
        opened = values.to(self.score.dtype)
        return GateOutput(opened, self.score, opened.mean(0))


class Dropping(Method):
    """Paper A's naive baseline: dropout on gates, then random units out at the target."""

    name = "dropping"
    thresholds = False

    def make_gates(self, requests: list[GateRequest], parameter_budget: int) -> list[nn.Module]:
        """Gates without parameters."""
        self.gates = [DroppingGate(request.units) for request in requests]
        return list(self.gates)

    def loss(
        self, units: Units, ratio: Float[Tensor, ""], target: float, progress: float
    ) -> Float[Tensor, ""]:
        """Nothing is learned; units are dropped more and more often, as the target asks."""
        for gate in self.gates:
            # An inner channel counts twice in the MACs (written and read), hence the root.
            gate.kept.fill_((1 + (target - 1) * progress) ** 0.5)
        return torch.zeros_like(ratio)
