"""How gates are trained: their loss, their prices and an optimizer of their own."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from polarprune.budget import Budget
from polarprune.dynamic_cost import forecast_macs
from polarprune.gates import GatedNetwork
from polarprune.loop_mistakes import check_learning
from polarprune.methods import naming
from polarprune.price_list import EVERY as PRICED_EVERY
from polarprune.price_list import PriceList


class GateTrainer:
    """The gates' Adam; the caller's optimizer, its rate and its schedule need not suit them."""

    NO_STATE: ClassVar[dict[str, Any]] = {"gate_optimizer": {}, "prices": {}, "forecast": None}

    def __init__(
        self,
        gated: GatedNetwork,
        budget: Budget,
        steps: int,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        """Prepare for a search of so many steps.

        Args:
            scaler: what the caller scales the loss with.
        """
        self.budget = budget
        self._scaler = scaler
        self._scale = 1.0
        self._prices: PriceList | None = None
        self.forecast: float | None = None  # MACs that the method foresaw when the search began
        parameters = list(gated.gate_parameters())
        # Adam moves a logit by about the learning rate a step: let it travel 20 in the search.
        rate = min(0.1, max(0.003, 20.0 / steps))
        self._optimizer = (
            torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99), fused=True)
            if parameters
            else None
        )

    def loss(self, gated: GatedNetwork, step: int, progress: float) -> Float[Tensor, ""]:
        """The method's loss of the batch that has just been through the network.

        Args:
            step: prices are found anew every few steps.
            progress: of the search, 0..1.

        Raises:
            TrainingError: that batch taught the gates nothing.
        """
        if self._scaler is not None:
            self._scale = self._scaler.get_scale()  # by step() it may be another one
        units = gated.units()
        if progress == 0:
            with torch.no_grad():
                self.forecast = forecast_macs(gated)
        if self._optimizer is not None:
            check_learning(gated, units.openness)
        if self._prices is None or step % PRICED_EVERY == 0:
            self._prices = PriceList.of(self.budget, units.openness)
        ratio = self._prices(units.openness)
        with naming(gated.state.method, "loss"):
            return gated.method.loss(units, ratio, self.budget.share, progress)

    def step(self) -> None:
        """Move the gates along the gradients that there are."""
        if self._optimizer is None:
            return
        parameters = self._optimizer.param_groups[0]["params"]
        gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
        # A loss scaler's overflow must not reach Adam's moments, nor its scale. Zeros alone are
        # gates at rest, which Adam's momentum would move.
        flat = torch.cat(gradients) if gradients else torch.zeros(1)
        if bool(flat.isfinite().all() & flat.any()):
            if self._scale != 1:
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad /= self._scale
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments and the prices."""
        return {
            "gate_optimizer": {}
            if self._optimizer is None
            else self._optimizer.state_dict()["state"],
            "prices": {} if self._prices is None else self._prices.state_dict(),
            "forecast": self.forecast,
        }

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        """Go on from a checkpoint.

        Args:
            like: prices are put on its device.
        """
        self.forecast = state.get("forecast")
        if state["prices"]:
            self._prices = PriceList.from_state(state["prices"], like)
        if self._optimizer is not None and state["gate_optimizer"]:
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict(
                {"state": state["gate_optimizer"], "param_groups": groups}
            )
