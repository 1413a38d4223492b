"""Which multiple kept channel counts should have, by the measured times of the device.

Rounding up keeps channels that decisions would close, and may save time all the same: where kernels
come in blocks, those channels are free, and others off the blocks would cost more than they save.
"""

import math

import torch

from polarprune.gates import GatedNetwork
from polarprune.latency_cost import LatencyCircuit
from polarprune.latency_table import LatencyTable

CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
_STEPS = 64  # uniform shares that are tried


def choose_alignment(gated: GatedNetwork, table: LatencyTable, share: float) -> int:
    """The multiple with which a network of this share of the dense latency keeps the most MACs.

    Of each multiple the widest network is taken that keeps one share of every site's channels, and
    is fast enough; of equals the smallest multiple. Source: ours.

    Args:
        share: of the dense network's predicted latency, 0..1.

    Raises:
        ConfigError: the table is another network's.
    """
    circuit = LatencyCircuit(gated.analysis, gated.circuit, table)
    bound = share * circuit.dense_ms

    def widest(align: int) -> int:
        """MACs of the widest that is fast enough; -1 where none is."""
        for step in range(_STEPS, 0, -1):
            decisions = uniform_decisions(gated, step / _STEPS, align)
            if circuit.exact_ms(decisions) <= bound:
                return gated.macs_of(decisions)
        return -1

    kept = {align: widest(align) for align in CANDIDATES}
    return max(CANDIDATES, key=lambda align: (kept[align], -align))


def uniform_decisions(gated: GatedNetwork, share: float, align: int) -> list[torch.Tensor]:
    """One share of every site's channels open, rounded up to a multiple; blocks open."""
    decisions = []
    for site in gated.sites:
        opened = torch.ones(site.units, dtype=torch.bool)
        if site.kind == "channel":
            count = max(1, math.ceil(share * site.units - 1e-9))
            opened[min(site.units, -(-count // align) * align) :] = False
        decisions.append(opened)
    return decisions
