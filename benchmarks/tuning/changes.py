"""Changes to the program that were tried: they last until the process ends."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polarprune import gate_training
from polarprune.attaching import attach_gates
from polarprune.gates import GatedNetwork
from polarprune.graph.sites import GateSite
from polarprune.methods import GateRequest, consensus
from polarprune.methods.relaxation import Relaxation, RelaxedGate
from polarprune.price_list import PriceList
from polarprune.runs import training


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


class BalancedPrices(PriceList):
    """The slope of the cost is each channel's price times the share of its site that is open.

    MACs are products: of what a convolution reads with what it writes. As a stream closes, the
    prices of the channels inside of its blocks fall and its own do not, so that what closed first
    goes on closing. Times its own share, either side of a product has the same price (ours).
    """

    sites: ClassVar[list[GateSite]] = []
    floor: ClassVar[float] = 0.0

    def __call__(self, openness: Float[Tensor, " g"]) -> Float[Tensor, ""]:
        """As PriceList; the value is the same, its gradient is not."""
        exact = super().__call__(openness).detach()
        now = openness.detach()
        shares = [
            torch.ones_like(part)
            if site.kind == "block"
            else ((part.mean() - self.floor) / (1 - self.floor)).clamp_min(0).expand(len(part))
            for site, part in zip(
                self.sites, torch.split(now, [site.units for site in self.sites]), strict=True
            )
        ]
        slopes = self.prices * torch.cat(shares)
        slopes = slopes * self.prices.sum() / slopes.sum().clamp_min(1e-12)
        return exact + (slopes * (openness - now)).sum()


def take_balanced_prices() -> None:
    """Train gates by BalancedPrices."""
    gate_training.PriceList = BalancedPrices  # type: ignore[misc,attr-defined]
    training.attach_gates = _with_known_sites  # type: ignore[attr-defined]


def take_floored_prices() -> None:
    """The same with a price that is 0 once 0.6 of a site is open (0.85 of an even narrowing).

    A random choice of blocks and channels, which narrows all sites alike, trained to a lower loss
    than the shapes that were found, whose streams were half closed.
    """
    take_balanced_prices()
    BalancedPrices.floor = 0.6


def _with_known_sites(*args: object, **options: object) -> GatedNetwork:
    gated = attach_gates(*args, **options)  # type: ignore[arg-type]
    BalancedPrices.sites = gated.sites
    return gated


def take_time() -> None:
    """Approach the target until nearly the end of the search; make gates agree late.

    With the defaults of then (target reached at 0.6 of the search, polarization growing with the
    square of progress) nearly all was decided in its first third, before the weights were good.
    """
    _agree(approach=0.9, since=0.0, power=6)


def agree_at_the_target() -> None:
    """Nothing has to agree before the target is reached, at 0.7 of the search.

    What agrees early is out of reach for a falling target: the dearest units, those of the
    residual stream, which agree last, then pay for all.
    """
    _agree(approach=0.7, since=0.7, power=2)


def _agree(approach: float, since: float, power: int) -> None:
    def weight(progress: float) -> float:
        return 5.0 * (max(0.0, progress - since) / (1 - since)) ** power

    consensus._APPROACH = approach
    consensus._polarization_weight = weight


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


class _WholeBlocks(RelaxedGate):
    """Blocks keep the weight 1."""

    def __init__(self, request: GateRequest) -> None:
        super().__init__(request.units)
        kinds = [kind for kind, size in request.sites for _ in range(size)]
        self.blocks = torch.tensor([kind == "block" for kind in kinds])

    def weights(self) -> Float[Tensor, " g"]:
        w = super().weights()
        return torch.where(self.blocks.to(w.device), torch.ones_like(w), w)


def relax_channels_alone() -> None:
    """A relaxed block goes with the last channel inside of it, as in the authors' code."""

    def make_gates(
        self: Relaxation, requests: list[GateRequest], parameter_budget: int
    ) -> list[nn.Module]:
        self.gates = [_WholeBlocks(request) for request in requests]
        return list(self.gates)

    Relaxation.make_gates = make_gates  # type: ignore[method-assign]
