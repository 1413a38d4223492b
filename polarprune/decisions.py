"""From scores to decisions: aligned, valid, and within a budget."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from polarprune.budget import OPTIONS, Budget
from polarprune.errors import ConfigError
from polarprune.graph.cost import CostCircuit, as_float
from polarprune.graph.operators import operator_name
from polarprune.graph.sites import Analysis

_GONE = -1.0  # the score of a unit that has been cut out of the network
# Share of the dense MACs below the bound at which nothing more is given back.
_CLOSE = 0.002


def choose_decisions(
    analysis: Analysis, scores: list[Tensor], align: int, budget: Budget | None
) -> dict[str, Tensor]:
    """Open what scores above a threshold, and the likeliest unit where something needs one.

    So a channel site of which every reader reads others too may be closed whole, and what wrote it
    goes (a level of a U-Net, a layer of a DenseNet). Which sets of sites need an open unit is
    `analysis.feeding`; find_starved says whether it misses one.
    A block is as likely as the likeliest channel that it cannot do without (graph/cells.py): where
    all of them are closed, it is. With a budget the threshold is the lowest that meets it. Blocks
    are large steps, and units with equal scores one large step too: what they leave free is given
    back, to the likeliest closed blocks that still fit and then to the likeliest closed channels.

    Args:
        scores: per site (units,), open probability; -1 for what has been cut out of the network.
        align: each channel site's open count is rounded up to a multiple of this.
        budget: what may be kept. Without one the threshold is 0.5.

    Raises:
        ConfigError: even the smallest network is above the budget.
    """
    scores = _with_cells(analysis, scores)
    if budget is None:
        return _named(analysis, _open_above(analysis, scores, align, 0.5, 0.5))
    thresholds = torch.cat([torch.tensor([_GONE]), *scores]).unique().tolist()  # type: ignore[no-untyped-call]

    def fits(threshold: float) -> bool:
        opened = _open_above(analysis, scores, align, threshold, threshold)
        return budget.cost(opened) <= budget.bound

    if fits(thresholds[-1]):
        opened = _open_above(analysis, scores, align, *[_lowest(thresholds, fits)] * 2)
    else:  # of what has to be fed, the likeliest are not always the cheapest
        check_reachable(analysis, align, budget)
        cheapest = [score.clamp(max=0.0) for score in scores]
        opened = _open_above(analysis, cheapest, align, 1.0, 1.0)
    _reopen_blocks(analysis, scores, opened, budget)
    _reopen_channels(analysis, scores, opened, align, budget)
    return _named(analysis, opened)


def _with_cells(analysis: Analysis, scores: list[Tensor]) -> list[Tensor]:
    """The scores of blocks brought down to those of what they cannot do without."""
    found = list(scores)
    for block, inside in analysis.cells.items():
        highest = [scores[site].max().reshape(1) for site in inside]
        found[block] = torch.stack([scores[block], *highest]).amin(0)
    return found


def _reopen_blocks(
    analysis: Analysis, scores: list[Tensor], opened: list[Tensor], budget: Budget
) -> None:
    """Open closed blocks again, the likeliest first, each that fits; in place."""
    closed = [
        (-float(score), place)
        for place, (site, score) in enumerate(zip(analysis.sites, scores, strict=True))
        if site.kind == "block" and not opened[place] and score > _GONE
    ]
    for _, place in sorted(closed):
        opened[place] = torch.ones_like(opened[place])
        if budget.cost(opened) > budget.bound:
            opened[place] = torch.zeros_like(opened[place])


def _reopen_channels(
    analysis: Analysis, scores: list[Tensor], opened: list[Tensor], align: int, budget: Budget
) -> None:
    """Open closed channels again, the likeliest first, an aligned handful at once; in place.

    Of a site whose next ones do not fit no more are tried: its channels all cost the same.
    """
    handfuls = _closed_handfuls(analysis, scores, opened, align)

    def with_first(count: int) -> list[Tensor]:
        more = list(opened)
        for _, place, units in handfuls[:count]:
            more[place] = more[place].clone()
            more[place][units] = True
        return more

    def cost(count: int) -> int:
        return budget.cost(with_first(count))

    while handfuls and budget.bound - budget.cost(opened) > _CLOSE * budget.dense:
        # More handfuls cost more: the most of them that fit.
        count = bisect.bisect_right(range(len(handfuls) + 1), budget.bound, key=cost) - 1
        opened[:] = with_first(count)
        too_large = {handfuls[count][1]} if count < len(handfuls) else set()
        handfuls = [h for h in handfuls[count:] if h[1] not in too_large]


def _closed_handfuls(
    analysis: Analysis, scores: list[Tensor], opened: list[Tensor], align: int
) -> list[tuple[float, int, list[int]]]:
    """(score negated, site, units): closed channels as they may be opened, the likeliest first."""
    found = []
    for place, (site, score) in enumerate(zip(analysis.sites, scores, strict=True)):
        if site.kind == "block":
            continue
        ranked = torch.argsort(score, descending=True, stable=True).tolist()
        closed = [unit for unit in ranked if not opened[place][unit] and score[unit] > _GONE]
        for start in range(0, len(closed), align):
            found.append((-float(score[closed[start]]), place, closed[start : start + align]))
    return sorted(found)


def _lowest(rising: list[float], holds: Callable[[float], bool]) -> float:
    """The first of these values that something holds for, which does so for all after it."""
    return rising[bisect.bisect_left(rising, True, key=holds)]


def smallest_decisions(analysis: Analysis, align: int) -> dict[str, Tensor]:
    """As little open as a whole network needs."""
    scores = [torch.zeros(site.units) for site in analysis.sites]
    return _named(analysis, _open_above(analysis, scores, align, 1.0, 1.0))


def check_reachable(analysis: Analysis, align: int, budget: Budget) -> None:
    """Refuse a budget that no decisions meet.

    Raises:
        ConfigError: what the smallest network keeps is said.
    """
    least = budget.cost(list(smallest_decisions(analysis, align).values()))
    if least > budget.bound:
        ways = ["a larger target"]
        if align > 1:
            ways.append(f"a smaller --align than {align}")
        if len({site.kind for site in analysis.sites}) < 2:
            ways.append("--granularity both")
        raise ConfigError(
            f"{OPTIONS[budget.quantity]} {budget.share:g} cannot be reached: the smallest network "
            f"that these gates allow keeps {least / budget.dense:.4f} of the {budget.quantity}; "
            f"choose {' or '.join(ways)}"
        )


def macs_of(circuit: CostCircuit, decisions: list[Tensor]) -> int:
    """MACs for one image of the network that these decisions leave (bool tensors, site order)."""
    with torch.no_grad():
        return round(as_float(circuit.evaluate([d.double() for d in decisions]).macs))


def _open_above(
    analysis: Analysis, scores: list[Tensor], align: int, blocks: float, channels: float
) -> list[Tensor]:
    """Per site what scores above the threshold of its kind, aligned; every reader has an input."""
    opened = []
    for site, score in zip(analysis.sites, scores, strict=True):
        above = score > (blocks if site.kind == "block" else channels)
        if site.kind == "channel":
            above = _likeliest(score, int(above.sum()), align)
        opened.append(above)
    for sites in analysis.feeding:
        if not any(bool(opened[site].any()) for site in sites):
            best = max(
                sorted(sites),
                key=lambda site: (float(scores[site].max()), -analysis.sites[site].unit_macs),
            )
            opened[best] = _likeliest(scores[best], 1, align)
    return opened


def _likeliest(score: Tensor, count: int, align: int) -> Tensor:
    """The units with the highest scores, so many of them rounded up to the alignment."""
    count = min(int((score > _GONE).sum()), -(-count // align) * align)
    found = torch.zeros(len(score), dtype=torch.bool)
    # A stable order, so that equal scores give equal decisions on every machine.
    found[torch.argsort(score, descending=True, stable=True)[:count]] = True
    return found


def _named(analysis: Analysis, opened: list[Tensor]) -> dict[str, Tensor]:
    return {site.name: d for site, d in zip(analysis.sites, opened, strict=True)}


def check_decisions(
    analysis: Analysis, circuit: CostCircuit, graph: fx.Graph, decisions: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Every site's decision as a bool tensor on the CPU, if the set leaves a whole network.

    Raises:
        ConfigError: an unknown site, a wrong shape, or a live operator without an input channel.
    """
    known = {site.name for site in analysis.sites}
    for name in decisions:
        if name not in known:
            raise ConfigError(f"there is no gate site {name!r}; gated.sites has their names")
    complete: dict[str, Tensor] = {}
    for site in analysis.sites:
        given = torch.as_tensor(decisions.get(site.name, torch.ones(site.units))).detach().cpu()
        if given.shape != (site.units,):
            raise ConfigError(
                f"site {site.name!r} has {site.units} units, got a decision of shape "
                f"{tuple(given.shape)}"
            )
        complete[site.name] = given.bool()
    starved = find_starved(analysis, circuit, graph, complete)
    if starved is not None:
        names = ", ".join(repr(analysis.sites[site].name) for site in sorted(starved.sites))
        raise ConfigError(
            f"these decisions leave {starved.where} without an input channel: every unit of site "
            f"{names} that it reads is closed; keep one open, or close the block instead"
        )
    return complete


@dataclass(frozen=True)
class Starved:
    """Something live that would read nothing, and the sites of what it reads."""

    where: str
    sites: frozenset[int]


def find_starved(
    analysis: Analysis, circuit: CostCircuit, graph: fx.Graph, decisions: dict[str, Tensor]
) -> Starved | None:
    """The first that these decisions leave without an input: its output would be a constant."""
    values = [decisions[site.name].double() for site in analysis.sites]
    cost = circuit.evaluate(values)
    for mix_cost, live, opened in zip(analysis.costs, cost.live, cost.open_inputs, strict=True):
        if as_float(live) > 0 and as_float(opened) == 0:
            return Starved(mix_cost.mix.layer, frozenset(mix_cost.reads))
    labels = analysis.labels
    shut = np.zeros(labels.count, dtype=bool)
    for site, roots in zip(analysis.sites, analysis.classes, strict=True):
        if site.kind == "channel":
            shut[roots[~decisions[site.name].numpy()]] = True
    shut = shut[labels.roots]
    known: dict[int, bool] = {}  # tensors that share their labels are looked at once

    def is_empty(name: str) -> bool:
        ids = labels.tensors[name].ids
        if id(ids) not in known:
            known[id(ids)] = bool(shut[ids].all())
        return known[id(ids)]

    empty = {name for name in labels.tensors if is_empty(name)}
    if not empty:
        return None
    live_nodes = circuit.live_nodes(values)
    for node in graph.nodes:
        unlabelled = node.name not in labels.tensors
        if node.name not in live_nodes or unlabelled or node.name in empty:
            continue
        for source in node.all_input_nodes:
            starved = source.name in empty and source.name in live_nodes
            if starved and operator_name(node) not in ("cat", "concat"):
                sites = analysis.units_at(labels.tensors[source.name].ids)[:, 0]
                return Starved(node.name, frozenset(sites[sites >= 0].tolist()))
    return None
