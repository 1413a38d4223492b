"""The expected cost between two evaluations: its tangent, so that most steps need no circuit.

The expected cost is a polynomial of all open probabilities with hundreds of tiny operations, some
3 % of a training step of ResNet-20. Probabilities move little in a few steps, so the tangent of
eight steps ago is as good: cost and prices are exact where it was taken (ours).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polarprune.budget import Budget

EVERY = 8  # steps that one list serves


@dataclass(frozen=True)
class PriceList:
    """What closing each unit would save, at one point.

    Attributes:
        at: openness of all units where the tangent was taken.
        ratio: expected over dense cost there.
        prices: its gradient there.
    """

    at: Float[Tensor, " g"]
    ratio: Float[Tensor, ""]
    prices: Float[Tensor, " g"]

    @classmethod
    def of(cls, budget: Budget, openness: Float[Tensor, " g"]) -> "PriceList":
        """Evaluate the cost and its gradient."""
        at = openness.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            ratio = budget.expected(at)
        prices = torch.zeros_like(at)
        if ratio.requires_grad:
            [prices] = torch.autograd.grad(ratio, at)
        return cls(at.detach(), ratio.detach(), prices)

    def __call__(self, openness: Float[Tensor, " g"]) -> Float[Tensor, ""]:
        """Expected over dense cost, to first order; differentiable."""
        return self.ratio + (self.prices * (openness - self.at)).sum()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, exactly."""
        return {name: getattr(self, name).tolist() for name in ("at", "ratio", "prices")}

    @classmethod
    def from_state(cls, state: dict[str, Any], like: Tensor) -> "PriceList":
        """The one whose numbers these are, with this tensor's dtype and device."""
        return cls(*(like.new_tensor(state[name]) for name in ("at", "ratio", "prices")))
