"""Continuous relaxation: one weight a unit between 0 and 1, driven away from the middle.

Larson et al., "A Generalization of Continuous Relaxation in Structured Pruning" (arXiv 2308.14605).
Its body could not be read. The relaxation, the structure loss, the Gaussian of the fence-sitter
loss, its delayed cubic ramp and the annealed alternative are those of the authors' published code
(CRISP, networks/totalloss.py and cell2d.py). **Ours** is what makes one pass of their many:

- The aim of the structure loss falls to the target.
- The threshold below which a unit is closed rises in the search from 0.02 to 0.5. (Theirs rises
  from run to run, 0.02 to 0.4.) A normalisation makes up for a weight of 0.1; for 0 nothing does,
  so the network learns before the cut to do without.
- The Gaussian is narrower, and a unit's weight in it is its share of the cost. With theirs the
  force on a single unit of 500 is a thousandth of what the structure loss exerts.
- What is left of the weights is folded into the layers.

Blocks have weights too (**ours**; the authors had such and took them back).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polarprune.methods.protocol import GateOutput, GateRequest, Method, Units
from polarprune.option_values import check_choice

# w = sigmoid(5 s) with s = 1 at the start: 0.993 (the authors' numbers).
_STEEPNESS = 5.0
_INITIAL = 1.0
# Below this a unit is closed, at the start of the search (the authors' lowest) and at its end.
_CLOSED = (0.02, 0.5)
# Of the annealed alternative, at the end of the search (the authors').
_STEEPEST = 30.0
# Width of the Gaussian bump: 0.45 in place of the authors' 1, which is flat where w is 0.1 or 0.9.
_SIGMA_SQUARED = 0.2
# Weights of the losses, and the parts of the search in which they act: ours, in one pass.
_STRUCTURE = 1.0
_MOST_STRUCTURE = 10.0
_FENCE_SITTERS = 5.0
_APPROACH = 0.6
_EJECTION = (0.4, 0.8)


class RelaxedGate(nn.Module):
    """One real number s a unit, the same for every image; w = sigmoid(k s) (paper B)."""

    steepness: Float[Tensor, ""]
    threshold: Float[Tensor, ""]

    def __init__(self, units: int) -> None:
        """All units open."""
        super().__init__()
        self.s = nn.Parameter(torch.full((units,), _INITIAL))
        self.register_buffer("steepness", torch.tensor(_STEEPNESS))
        self.register_buffer("threshold", torch.tensor(_CLOSED[0]))

    def weights(self) -> Float[Tensor, " g"]:
        """W of each unit, in (0, 1)."""
        return torch.sigmoid(self.steepness * self.s)

    def forward(self, pooled: Float[Tensor, "n 0"]) -> GateOutput:
        """W as it is; below the threshold exactly 0, with the gradient of w."""
        w = self.weights()
        values = w - torch.where(w < self.threshold, w, torch.zeros_like(w)).detach()
        return GateOutput(values.unsqueeze(0), w, values)


class Relaxation(Method):
    """Weights that are multiplied in while training, and folded into the network at the end.

    A decision is a threshold on w; the weight of what stays is not 1, and is kept.
    """

    name = "relaxation"
    options = ("ejector",)
    thresholds = False
    watches = False

    def __init__(self, ejector: str = "gaussian") -> None:
        """Choose what drives units away from the middle.

        Args:
            ejector: "gaussian", a loss with its maximum at s = 0; or "annealed", a steepness k that
                grows from 5 to 30.

        Raises:
            ConfigError: neither.
        """
        check_choice("--ejector", ejector, ("gaussian", "annealed"))
        self.ejector = ejector
        self.gates: list[RelaxedGate] = []

    def make_gates(self, requests: list[GateRequest], parameter_budget: int) -> list[nn.Module]:
        """One number a unit."""
        self.gates = [RelaxedGate(request.units) for request in requests]
        return list(self.gates)

    def open_weights(self, gate: nn.Module) -> Float[Tensor, " g"]:
        """W of each unit."""
        assert isinstance(gate, RelaxedGate)
        return gate.weights()

    def loss(
        self, units: Units, ratio: Float[Tensor, ""], target: float, progress: float
    ) -> Float[Tensor, ""]:
        """Structure loss, and the fence-sitter loss or a steeper k."""
        aim = 1.0 + (target - 1.0) * min(1.0, progress / _APPROACH)
        weight = _STRUCTURE + (_MOST_STRUCTURE - _STRUCTURE) * progress**2
        structure = weight * (ratio - aim).abs()
        start, full = _EJECTION
        risen = min(1.0, max(0.0, (progress - start) / (full - start)))
        ejection = cubic_ramp(progress, start, full)
        annealed = self.ejector == "annealed"
        for gate in self.gates:
            # Other tensors: the backward pass still needs those of the forward pass.
            gate.threshold = torch.full_like(
                gate.threshold, _CLOSED[0] + (_CLOSED[1] - _CLOSED[0]) * risen
            )
            if annealed:
                gate.steepness = torch.full_like(
                    gate.steepness, _STEEPNESS + (_STEEPEST - _STEEPNESS) * ejection
                )
        if annealed or not ejection:
            return structure
        share = cost_share(ratio, units.openness)
        return structure + _FENCE_SITTERS * ejection * fence_sitter_loss(units.probability, share)


def fence_sitter_loss(w: Float[Tensor, " g"], share: Float[Tensor, " g"]) -> Float[Tensor, ""]:
    """Mean of exp(-(s / 2 sigma^2)^2) over units, s = logit(w) / k (paper B's code; shares: ours).

    Args:
        share: weight of each unit; they add up to 1.
    """
    s = torch.logit(w.float(), eps=1e-6) / _STEEPNESS  # half precision has no 1 - 1e-6
    return (share * torch.exp(-((s / (2 * _SIGMA_SQUARED)) ** 2))).sum()


def cost_share(ratio: Float[Tensor, ""], openness: Float[Tensor, " g"]) -> Float[Tensor, " g"]:
    """What part of the cost each unit is asked for at present: its price over all prices (ours)."""
    price = None
    if ratio.requires_grad and openness.requires_grad:
        (price,) = torch.autograd.grad(ratio, openness, retain_graph=True, allow_unused=True)
    if price is None:
        price = torch.ones_like(openness)
    price = price.detach().clamp_min(0)
    return price / price.sum().clamp_min(1e-12)


def cubic_ramp(progress: float, start: float, full: float) -> float:
    """0 until `start`, 1 from `full` on, a cubic in between."""
    return min(1.0, max(0.0, (progress - start) / (full - start))) ** 3
