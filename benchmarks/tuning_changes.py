"""Changes to the program that were tried: they last until the process ends."""

from jaxtyping import Float
from torch import Tensor, nn

from polarprune import gate_training, training
from polarprune.gates import GatedNetwork, attach_gates
from polarprune.price_list import PriceList


class RootPrices(PriceList):
    """The slope of the cost is the root of each price, scaled so that the prices' sum stays.

    Adam moves a logit by price / sqrt(E[g^2]), g being the gradient of the task loss by the gate.
    Closing a unit costs about E[g^2] (Fisher), so that price / E[g^2] should decide; with the root
    of the price the drift is the root of just that (ours).
    """

    def __call__(self, openness: Float[Tensor, " g"]) -> Float[Tensor, ""]:
        """As PriceList; the value is the same, its gradient is not."""
        exact = super().__call__(openness).detach()
        roots = self.prices.clamp_min(0).sqrt()
        slopes = roots * self.prices.sum() / roots.sum().clamp_min(1e-12)
        return exact + (slopes * (openness - openness.detach())).sum()


def take_root_prices() -> None:
    """Train gates by RootPrices."""
    gate_training.PriceList = RootPrices  # type: ignore[misc,attr-defined]


def keep_streams() -> None:
    """Never close a channel of a residual stream (of the networks of this study)."""
    training.attach_gates = _with_whole_streams  # type: ignore[attr-defined]


def _with_whole_streams(*args: object, **options: object) -> GatedNetwork:
    gated = attach_gates(*args, **options)  # type: ignore[arg-type]
    for site, gate in zip(gated.sites, gated.site_gates(), strict=True):
        if site.kind == "channel" and not site.name.endswith(".conv1"):
            last = gate.source.gate.logit
            assert isinstance(last, nn.Linear)
            last.bias.data[gate.units] = 1000.0  # certainly open, and without a gradient
    return gated
