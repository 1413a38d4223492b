"""The networks that are timed: dense, and cut to a share of the MACs in five ways.

Weights are fresh: latency only. A cut has one share for all channel sites, the largest that keeps
at most the bound (`benchmarks.uniform_cuts`), or closes whole blocks. Dense goes through the same
rewriting with everything open. Each is certified in float64, then its batch norms are folded.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

from benchmarks.uniform_cuts import STEPS, Made, OurCuts
from polarprune import count_macs
from polarprune.errors import ParityError, PolarpruneError, Refused
from polarprune_export.folding import fold_batchnorms

CHANNEL_CUTS = {
    "channels": 1, "channels aligned to 8": 8, "channels aligned to 16": 16,
    "channels aligned to 32": 32,
}  # fmt: skip
BLOCKS = "blocks"
CUTS = (*CHANNEL_CUTS, BLOCKS)
# Weights are rounded to float32 once; more is another network.
FOLDING_LIMIT = 1e-4
# The last layers of a small image see one pixel of each: two make a variance of nearly nothing.
SETTLING_IMAGES = 16


@dataclass(frozen=True)
class Side:
    """One network of a comparison, folded and in float32, with what the record says about it."""

    network: fx.GraphModule
    facts: dict[str, Any]


@dataclass(frozen=True)
class Sides:
    """Dense, the cuts that there are, and of the others why there are none."""

    dense: Side
    cuts: dict[str, Side]
    refused: dict[str, str]


class NetworkCuts:
    """All cuts of one torchvision network; gates are attached once."""

    def __init__(self, name: str, image_size: int, seed: int) -> None:
        """Build it.

        Args:
            seed: of weights and of the images on which cuts are certified.
        """
        torch.manual_seed(seed)
        net: nn.Module = getattr(torchvision.models, name)(weights=None)
        self._images = torch.randn(2, 3, image_size, image_size)
        _settle_norms(net, torch.randn(SETTLING_IMAGES, 3, image_size, image_size))
        self._dense_macs = count_macs(net, self._images)
        self._ours = OurCuts(net, self._images)
        self._dense = self._side(self._ours.at_share(1, 1.0))
        self._made: dict[float, Sides] = {}

    def at(self, kept: float) -> Sides:
        """The cuts that keep at most this share of the MACs; made when first asked for."""
        if kept not in self._made:
            self._made[kept] = self._cut(kept)
        return self._made[kept]

    def has(self, kept: float) -> bool:
        """Whether they are made."""
        return kept in self._made

    def _cut(self, kept: float) -> Sides:
        most = int(kept * self._dense_macs)
        cuts, refused = {}, {}
        for name in CUTS:
            try:
                made = (
                    self._ours.blocks(most)
                    if name == BLOCKS
                    else self._ours.channels(CHANNEL_CUTS[name], most)
                )
                cuts[name] = self._side(made)
            except Refused as error:
                refused[name] = f"{error}{self._least(name)}"
            except PolarpruneError as error:
                refused[name] = str(error)
        return Sides(self._dense, cuts, refused)

    def _least(self, name: str) -> str:
        if name == BLOCKS:
            return ""
        least = self._ours.at_share(CHANNEL_CUTS[name], 1 / STEPS).macs
        return f"; its smallest such cut keeps {least / self._dense_macs:.3f} of them"

    def _side(self, made: Made) -> Side:
        assert isinstance(made.network, fx.GraphModule)
        folded = fold_batchnorms(made.network, self._images)[0]
        facts = {
            "macs": made.macs,
            "macs_ratio": made.macs / self._dense_macs,
            "share": made.share,
            **made.facts,
            "folding_error": folding_error(made.network, folded, self._images),
        }
        return Side(folded, facts)


def folding_error(before: nn.Module, after: nn.Module, images: Tensor) -> float:
    """Largest relative difference of the outputs, in float64.

    Raises:
        ParityError: it is more than rounding.
    """
    with torch.no_grad():
        wanted, got = (
            copy.deepcopy(net).double().eval()(images.double()) for net in (before, after)
        )
    error = float((got - wanted).abs().max() / wanted.abs().max())
    if not error <= FOLDING_LIMIT:
        raise ParityError(f"folding batch norms changed outputs by {error:.3g}; it was not timed")
    return error


def _settle_norms(net: nn.Module, images: Tensor) -> None:
    """Statistics of random images: with fresh ones MobileNetV2's outputs are zero in fp16."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches seen
    with torch.no_grad():
        net.train()(images)
    net.eval()
