"""Which multiple kept channel counts should have, by the measured times of the device.

Rounding up keeps channels that decisions would close, and may save time all the same: where kernels
come in blocks, those channels are free, and others off the blocks would cost more than they save.
"""

import math
from statistics import fmean

import torch

from polarprune.gates import GatedNetwork
from polarprune.graph.sites import GateSite
from polarprune.latency_cost import LatencyCircuit
from polarprune.latency_table import LatencyTable

CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
# Sites keep unequal shares in the end, and counts as they fall: halves and quarters of 64 channels
# would be multiples of everything.
_DRAWS, _SPREAD = 4, 0.25
_HALVINGS = 7
# A larger multiple leaves the gates less to choose: it has to keep so many more of the MACs.
_WORTH_IT = 1.02
# Of the way from the smallest network with all blocks to the dense one: below, whole blocks go, and
# the channels of the others are as many as above.
_LEAST_WAY = 0.25


def choose_alignment(gated: GatedNetwork, table: LatencyTable, share: float) -> int:
    """The multiple with which a network of this share of the dense latency keeps the most MACs.

    Of each multiple the widest network is taken that is fast enough, its sites keeping shares
    around one mean; a larger multiple is chosen only where it keeps 2 % more. Source: ours.

    Args:
        share: of the dense network's predicted latency, 0..1.

    Raises:
        ConfigError: the table is another network's.
    """
    circuit = LatencyCircuit(gated.analysis, gated.circuit, table)
    smallest_ms = circuit.exact_ms(uniform_decisions(gated, 0.0, 1))
    least_ms = smallest_ms + _LEAST_WAY * (circuit.dense_ms - smallest_ms)
    bound = max(share * circuit.dense_ms, least_ms)

    def measured(align: int, middle: float) -> tuple[float, float]:
        """Mean milliseconds and MACs of networks that keep this share."""
        drawn = [spread_decisions(gated, middle, align, seed) for seed in range(_DRAWS)]
        return fmean(map(circuit.exact_ms, drawn)), fmean(map(gated.macs_of, drawn))

    def macs_within(align: int) -> float:
        """MACs at the bound, between the widest that is fast enough and the next; 0 if none is."""
        low, high = 0.0, 1.0
        below, above = measured(align, low), measured(align, high)
        if below[0] > bound:
            return 0.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = measured(align, middle)
            if found[0] <= bound:
                low, below = middle, found
            else:
                high, above = middle, found
        # A coarse multiple's steps are large: that one of them ends just below is no merit.
        way = (bound - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 0.0
        return below[1] + way * (above[1] - below[1])

    kept = {align: macs_within(align) for align in CANDIDATES}
    enough = max(kept.values()) / _WORTH_IT
    return next(align for align in CANDIDATES if kept[align] >= enough)


def spread_decisions(
    gated: GatedNetwork, share: float, align: int, seed: int
) -> list[torch.Tensor]:
    """Shares around one mean of the sites' channels open, rounded up to a multiple; blocks open."""
    generator = torch.Generator().manual_seed(seed)
    spread = 1 + _SPREAD * (2 * torch.rand(len(gated.sites), generator=generator) - 1)
    return [
        _first_open(site, share * float(factor), align)
        for site, factor in zip(gated.sites, spread, strict=True)
    ]


def uniform_decisions(gated: GatedNetwork, share: float, align: int) -> list[torch.Tensor]:
    """One share of every site's channels open, rounded up to a multiple; blocks open."""
    return [_first_open(site, share, align) for site in gated.sites]


def _first_open(site: GateSite, share: float, align: int) -> torch.Tensor:
    opened = torch.ones(site.units, dtype=torch.bool)
    if site.kind == "channel":
        count = max(1, math.ceil(share * site.units - 1e-9))
        opened[min(site.units, -(-count // align) * align) :] = False
    return opened
