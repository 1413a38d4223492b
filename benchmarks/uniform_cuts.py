"""One network cut to a bound on its MACs with one share for all channel sites, by us and by others.

The share is the largest step of 1/2048 whose cut keeps at most the bound, so that no side is given
a better search than another. Ours keeps the first units of each site and theirs those of largest
magnitude: which ones does not change the time. Both take the share of a site's units rounded down;
to a multiple ours goes up from there, as `--align` does, and Torch-Pruning down.

Blocks: as many as the bound allows, and of these choices the one that is most even over the stages,
closed from the end of each stage.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polarprune import GatedNetwork, attach_gates, certify, collapse, count_macs
from polarprune.errors import Refused

STEPS = 2048
Decisions = dict[str, Tensor]


@dataclass(frozen=True)
class Made:
    """A small network and what the record says about it; `share` is None for blocks and dense."""

    network: nn.Module
    macs: int
    share: float | None
    facts: dict[str, Any]


def largest_share(macs_at: Callable[[float], int], most_macs: int) -> float:
    """The largest share, in steps, whose cut keeps at most so many MACs; MACs grow with the share.

    Raises:
        Refused: not even the smallest share does.
    """
    low, high = 0, STEPS + 1
    while high - low > 1:
        middle = (low + high) // 2
        if macs_at(middle / STEPS) <= most_macs:
            low = middle
        else:
            high = middle
    if not low:
        raise Refused(f"no share of the channels keeps at most {most_macs} MACs")
    return low / STEPS


class OurCuts:
    """Cuts of one network by polarprune."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        """Attach gates once; every cut is a set of decisions on them."""
        self._images = images
        self._gated: GatedNetwork = attach_gates(net, images)
        self._cost = self._gated.macs_budget(1.0).cost

    def channels(self, multiple: int, most_macs: int) -> Made:
        """The same share of every channel site, counts rounded up to the multiple."""
        return self.at_share(
            multiple,
            largest_share(lambda share: self._macs(self._uniform(share, multiple)), most_macs),
        )

    def at_share(self, multiple: int, share: float) -> Made:
        """The cut at one share, whatever it keeps."""
        return self._cut(self._uniform(share, multiple), share)

    def blocks(self, most_macs: int) -> Made:
        """Whole residual blocks, as evenly over the stages as the bound allows."""
        stages: dict[str, list[str]] = {}
        for site in self._gated.sites:
            if site.kind == "block":
                stages.setdefault(site.name.rpartition(".")[0], []).append(site.name)
        sizes = [len(names) for names in stages.values()]
        fitting = {
            closed: macs
            for closed in itertools.product(*(range(size + 1) for size in sizes))
            if (macs := self._macs(_closing(stages, closed))) <= most_macs
        }
        full = [closed for closed in fitting if not _one_more_fits(closed, fitting)]
        if not full:
            raise Refused(f"no choice of blocks keeps at most {most_macs} MACs")

        def unevenness(closed: tuple[int, ...]) -> tuple[float, int]:
            shares = [count / size for count, size in zip(closed, sizes, strict=True)]
            return max(shares) - min(shares), -fitting[closed]

        chosen = min(full, key=unevenness)
        made = self._cut(_closing(stages, chosen), None)
        return Made(made.network, made.macs, None, {**made.facts, "closed_a_stage": chosen})

    def _uniform(self, share: float, multiple: int) -> Decisions:
        decisions = {}
        for site in self._gated.sites:
            if site.kind == "channel":
                wanted = max(1, int(share * site.units))  # down, as Torch-Pruning does
                count = -(-wanted // multiple) * multiple
                decisions[site.name] = torch.arange(site.units) < count
        return decisions

    def _macs(self, decisions: Decisions) -> int:
        opened = torch.ones(1, dtype=torch.bool)
        return self._cost(
            [decisions.get(s.name, opened.expand(s.units)) for s in self._gated.sites]
        )

    def _cut(self, decisions: Decisions, share: float | None) -> Made:
        self._gated.set_decisions({})
        self._gated.set_decisions(decisions)
        small = collapse(self._gated)
        certificate = certify(self._gated, small, self._images).as_dict()
        opened = {name: int(units.sum()) for name, units in decisions.items()}
        facts = {"open": opened, "certificate": certificate}
        return Made(small, count_macs(small, self._images), share, facts)


def _closing(stages: dict[str, list[str]], closed: tuple[int, ...]) -> Decisions:
    names = [
        name
        for blocks, count in zip(stages.values(), closed, strict=True)
        for name in blocks[len(blocks) - count :]
    ]
    return {name: torch.zeros(1, dtype=torch.bool) for name in names}


def _one_more_fits(closed: tuple[int, ...], fitting: dict[tuple[int, ...], int]) -> bool:
    """Whether one of the closed blocks could stay."""
    return any(
        (*closed[:stage], count - 1, *closed[stage + 1 :]) in fitting
        for stage, count in enumerate(closed)
    )


class TorchPruningCuts:
    """Cuts of one network by Torch-Pruning's MagnitudePruner, one pruning ratio for all layers."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        """The network is copied for every cut."""
        self._net, self._images = net, images[:1]

    def channels(self, round_to: int | None, most_macs: int) -> Made:
        """The share that keeps at most so many MACs."""
        return self.at_share(
            round_to,
            largest_share(
                lambda share: count_macs(self._pruned(round_to, share), self._images), most_macs
            ),
        )

    def at_share(self, round_to: int | None, share: float) -> Made:
        """The cut at one share, whatever it keeps."""
        small = self._pruned(round_to, share)
        layers = {
            name: module.out_channels
            for name, module in small.named_modules()
            if isinstance(module, nn.Conv2d)
        }
        return Made(small, count_macs(small, self._images), share, {"open": layers})

    def _pruned(self, round_to: int | None, share: float) -> nn.Module:
        import torch_pruning

        small = copy.deepcopy(self._net)
        if share == 1.0:
            return small
        pruner = torch_pruning.pruner.MagnitudePruner(
            small,
            self._images,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=1 - share,
            round_to=round_to,
            ignored_layers=[m for m in small.modules() if isinstance(m, nn.Linear)][-1:],
        )
        pruner.step()
        return small
