"""Consensus gates: input-dependent at first, driven to one decision that all inputs share.

Zhi et al., "Learning a Consensus Sub-Network with Polarization Regularization and One Pass
Training" (arXiv 2302.10798): binary gates, straight-through gradient, a polarization loss, a
user-defined budget, static decisions at the end. The paper's body could not be read: the gate's
layers, the exact losses and all constants here are **ours**.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polarprune.methods.protocol import GateOutput, GateRequest, Method, Units

# Open at the start: sigmoid(2) = 0.88, and the gradient of the sigmoid is still alive there.
_INITIAL_LOGIT = 2.0
_MAX_HIDDEN = 16
# Weight of the polarization loss at the end of the search.
_MOST_POLARIZATION = 5.0
# The running target falls from 1 to the user's over this part of the search; the rest is for
# agreement at the final cost.
_APPROACH = 0.6


class ConsensusGate(nn.Module):
    """Pooled features -> normalise -> small MLP -> sigmoid -> 0/1 with a straight-through gradient.

    Source: ours (see the module's docstring).
    """

    def __init__(self, request: GateRequest, hidden: int) -> None:
        """A gate of `request.units` decisions with one hidden layer."""
        super().__init__()
        # Features differ in scale by orders of magnitude between depths and epochs.
        self.normalise = nn.LayerNorm(request.channels, elementwise_affine=False)
        self.hidden = nn.Linear(request.channels, hidden)
        self.logit = nn.Linear(hidden, request.units)
        nn.init.normal_(self.logit.weight, std=0.1 / math.sqrt(hidden))
        nn.init.constant_(self.logit.bias, _INITIAL_LOGIT)

    def forward(self, pooled: Float[Tensor, "n c"]) -> GateOutput:
        """Decide for each input; closed is 0 and open is 1 in the forward pass, exactly."""
        p = torch.sigmoid(self.logit(torch.relu(self.hidden(self.normalise(pooled)))))
        # Straight-through: forward the decision, backward the sigmoid's gradient.
        values = (p > 0.5).to(p.dtype) + (p - p.detach())
        return GateOutput(values, p.mean(0), values.mean(0))


class Consensus(Method):
    """The default method."""

    name = "consensus"

    def make_gates(self, requests: list[GateRequest], parameter_budget: int) -> list[nn.Module]:
        """The widest hidden layers (at most 16) with which all gates fit the budget."""
        for width in range(_MAX_HIDDEN, 0, -1):
            hidden = [min(width, max(1, math.ceil(r.channels / 4))) for r in requests]
            size = sum(
                h * (r.channels + 1) + r.units * (h + 1)
                for h, r in zip(hidden, requests, strict=True)
            )
            if size <= parameter_budget:
                break
        return [ConsensusGate(r, h) for r, h in zip(requests, hidden, strict=True)]

    def loss(
        self, units: Units, ratio: Float[Tensor, ""], target: float, progress: float
    ) -> Float[Tensor, ""]:
        """Budget loss and polarization loss, both ours in form."""
        aim = 1.0 + (target - 1.0) * min(1.0, progress / _APPROACH)
        polarization = polarization_loss(units.probability, units.share)
        return budget_loss(ratio, aim, progress) + _polarization_weight(progress) * polarization


def _polarization_weight(progress: float) -> float:
    """Grows with the square of progress: gates move first and are made to agree last (ours)."""
    return _MOST_POLARIZATION * progress**2


def polarization_loss(
    probability: Float[Tensor, " g"], share: Float[Tensor, " g"]
) -> Float[Tensor, ""]:
    """Weighted mean of 4 p (1 - p) over units, p the batch-mean open probability.

    Zero only when all inputs agree on 0 or on 1, one when they are split. Source: ours; the
    paper's statement, not its formula.
    """
    return 4 * (share * probability * (1 - probability)).sum()


def budget_loss(ratio: Float[Tensor, ""], aim: float, progress: float) -> Float[Tensor, ""]:
    """Linear-quadratic penalty on the excess of the expected cost over the aim (ours).

    The linear part gives a price a MAC that does not fade as the aim is reached; the quadratic one
    stiffens with progress, so that the search ends at the aim whatever the task loss would pay.
    """
    excess = (ratio - aim).clamp_min(0)
    return 2.0 * excess + 25.0 * (1 + 40 * progress**2) * excess**2
