"""What the coverage program reads off a gated or collapsed network."""

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from polarprune.gates import GatedNetwork

Row = dict[str, Any]


def verdict(row: Row) -> str:
    """exact, or the worst kind among the row's problems."""
    kinds = {problem["kind"] for problem in row["problems"]}
    return next((kind for kind in ("WRONG", "crash", "refused") if kind in kinds), "exact")


def random_half(gated: GatedNetwork, seed: int, *, blocks: bool) -> dict[str, Tensor]:
    """Half of each channel site's units closed (rounded down), and of the blocks if wanted."""
    generator = torch.Generator().manual_seed(seed)
    decisions: dict[str, Tensor] = {}
    sites = [site for site in gated.sites if site.kind == "block"]
    shut = torch.randperm(len(sites), generator=generator)[: len(sites) // 2] if blocks else []
    for place, site in enumerate(sites):
        decisions[site.name] = torch.tensor([place not in {int(i) for i in shut}])
    for site in gated.sites:
        if site.kind == "channel":
            opened = torch.ones(site.units, dtype=torch.bool)
            opened[torch.randperm(site.units, generator=generator)[: site.units // 2]] = False
            decisions[site.name] = opened
    return decisions


def foreign_layers(dense: nn.Module) -> list[str]:
    """Types of layers in a collapsed network that are not torch.nn's own."""
    return sorted(
        {
            f"{type(module).__module__}.{type(module).__name__}"
            for name, module in dense.named_modules()
            if name
            and not type(module).__module__.startswith("torch.nn.modules")
            and type(module) is not nn.Module
        }
    )


def same_network(left: nn.Module, right: nn.Module) -> bool:
    """Equal code and equal shapes."""
    assert isinstance(left, fx.GraphModule)
    assert isinstance(right, fx.GraphModule)
    shapes = [{k: t.shape for k, t in net.state_dict().items()} for net in (left, right)]
    return left.code == right.code and shapes[0] == shapes[1]


def pinned_shares(gated: GatedNetwork) -> dict[str, float]:
    """Per reason, which share of the MACs lies at input positions that it keeps from being cut.

    The image's own channels are left out; operators that the analysis does not know are a reason
    of their own. Shares of one network may be a little off where reasons overlap: a class has one.
    """
    analysis, total = gated.analysis, max(gated.circuit.dense_macs, 1)
    pinned = analysis.labels.pinned_roots()
    shares: dict[str, float] = defaultdict(float)
    for cost in analysis.costs:
        roots = Counter(np.asarray(analysis.labels.roots[cost.mix.inputs]).tolist())
        for root, count in roots.items():
            if root in pinned:
                shares[pinned[root]] += cost.total * count / len(cost.mix.inputs) / total
    unknown = 1 - sum(cost.total for cost in analysis.costs) / total
    if not math.isclose(unknown, 0, abs_tol=1e-6):
        shares["in operators that the analysis does not know"] = unknown
    shares.pop("network input", None)
    return {k: round(v, 4) for k, v in sorted(shares.items(), key=lambda kv: -kv[1])}


def one_sided_share(gated: GatedNetwork) -> float:
    """Share of the MACs in layers that only shrink in proportion: half a layer there is half of it.

    They are grouped (depthwise most of all), read the image, or write the output. In all others
    half of the inputs and half of the outputs leave a quarter.
    """
    analysis, pinned = gated.analysis, gated.analysis.labels.pinned_roots()
    found = 0
    for cost in analysis.costs:
        ends = [pinned.get(int(analysis.labels.roots[side[0]]))
                for side in (cost.mix.inputs, cost.mix.outputs)]  # fmt: skip
        if cost.mix.groups > 1 or ends[0] == "network input" or ends[1] == "network output":
            found += cost.total
    return round(found / max(gated.circuit.dense_macs, 1), 4)
