"""The operators of a network that a picture shows, and what flows between them.

Mixing operators, and operators that join two or more tensors, are shown. Every other operator
reads one shown tensor and is folded into the operator that made it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import fx, nn

    from polarprune.graph.sites import Analysis, MixCost

# Channels of each site (by its place in the table of sites), ascending.
Channels = tuple[tuple[int, int], ...]

_ADDITIONS = {"add", "iadd", "add_"}
_CONCATENATIONS = {"cat", "concat", "concatenate"}
_UNWORTHY = {"Identity", "getitem"}  # of mention


@dataclass(frozen=True)
class Operator:
    """One operator that is shown.

    Attributes:
        node: its name in the graph.
        name: the layer of a mixing operator, else the operator in words.
        sources: places of the operators it reads.
        reads, writes: channels of each site; of a joining operator both are what it passes on.
        inputs, outputs: all channels of a mixing operator, those of no site included.
        kept: (inputs, outputs) in the small network; None where nothing has been decided.
        removed: it is not in the small network.
        folded: the operators behind it that are not shown, in words.
        stands_for: the nodes it shows, its own first, and its layer.
        refused: why its channels, or those of a folded operator, cannot be gated.
    """

    node: str
    kind: Literal["input", "mix", "join", "output"]
    name: str
    detail: str
    sources: tuple[int, ...]
    reads: Channels = ()
    writes: Channels = ()
    inputs: int = 0
    outputs: int = 0
    macs: int = 0
    kept: tuple[int, int] | None = None
    removed: bool = False
    folded: tuple[str, ...] = ()
    stands_for: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResidualBlock:
    """A residual block: its site and the places of its operators, the addition last."""

    site: int
    operators: tuple[int, ...]


@dataclass(frozen=True)
class OperatorGraph:
    """What a picture shows, in the order of computation."""

    operators: tuple[Operator, ...]
    blocks: tuple[ResidualBlock, ...]


def operator_graph(
    plain: "fx.GraphModule",
    analysis: "Analysis",
    removed_blocks: frozenset[int],
    small: "nn.Module | None" = None,
) -> OperatorGraph:
    """Fold a normalised graph into the operators that matter.

    Args:
        removed_blocks: places of the block sites that were closed.
        small: what is left of the network, where it was pruned.
    """
    costs = {cost.mix.node: cost for cost in analysis.costs}
    folding = _Folding(plain, costs)
    carried = _carried(folding, analysis)
    blocks = [
        ResidualBlock(
            place,
            tuple(
                sorted(
                    folding.heads[name]
                    for name in {*block.private, block.addition}
                    if name in folding.heads
                )
            ),
        )
        for place, block in sorted(analysis.additions.items())
    ]
    gone = {place for block in blocks if block.site in removed_blocks for place in block.operators}
    left = None if small is None else dict(small.named_modules())
    reasons: dict[str, list[str]] = {}
    for refusal in analysis.refused:
        reasons.setdefault(refusal.where, []).append(refusal.reason)
    around: dict[int, list[str]] = {}
    for name, place in folding.place.items():
        around.setdefault(place, []).append(name)
    operators = []
    for place, shown in enumerate(folding.shown):
        cost = costs.get(shown.node.name)
        names = around[place]
        facts: dict[str, Any] = {"reads": carried[place], "writes": carried[place]}
        if cost is not None:
            names = list(dict.fromkeys([*names, cost.mix.layer]))
            facts = _mix_facts(plain.get_submodule(cost.mix.layer), cost, analysis)
            if left is not None:
                facts["kept"] = _width(left.get(cost.mix.layer))
                facts["removed"] = cost.mix.layer not in left
        elif place in gone:
            facts["removed"] = True
        operators.append(
            Operator(
                node=shown.node.name,
                kind=shown.kind,
                name=cost.mix.layer if cost is not None else _word(plain, shown.node),
                detail=facts.pop("detail", ""),
                sources=shown.sources,
                folded=tuple(shown.folded),
                stands_for=tuple(names),
                refused=tuple(reason for name in names for reason in reasons.get(name, ())),
                **facts,
            )
        )
    return OperatorGraph(tuple(operators), tuple(blocks))


@dataclass
class _Shown:
    node: "fx.Node"
    kind: Literal["input", "mix", "join", "output"]
    sources: tuple[int, ...]
    folded: list[str] = field(default_factory=list)


class _Folding:
    """Which nodes are shown, and in which shown one each other node lies.

    Attributes:
        shown: the shown nodes in graph order.
        heads: place in `shown` of each shown node, by name.
        place: place in `shown` of every node that depends on the input, by name.
    """

    def __init__(self, plain: "fx.GraphModule", costs: Mapping[str, "MixCost"]) -> None:
        self.shown: list[_Shown] = []
        self.heads: dict[str, int] = {}
        self.place: dict[str, int] = {}
        self._concatenated: dict[tuple[Any, ...], fx.Node] = {}
        for node in plain.graph.nodes:
            names = [n.name for n in self._sources(node) if n.name in self.place]
            sources = tuple(dict.fromkeys(self.place[name] for name in names))
            if node.op == "placeholder":
                self._show(node, "input", ())
            elif node.op == "output":
                self._show(node, "output", sources)
            elif node.name in costs:
                self._show(node, "mix", sources)
            elif len(sources) > 1:
                self._show(node, "join", sources)
            elif sources:  # what depends on no input is a parameter
                self.place[node.name] = sources[0]
                word = _word(plain, node)
                folded = self.shown[sources[0]].folded
                if word not in _UNWORTHY and folded[-1:] != [word]:
                    folded.append(word)

    def _show(
        self,
        node: "fx.Node",
        kind: Literal["input", "mix", "join", "output"],
        sources: tuple[int, ...],
    ) -> None:
        self.heads[node.name] = self.place[node.name] = len(self.shown)
        self.shown.append(_Shown(node, kind, sources))

    def _sources(self, node: "fx.Node") -> list["fx.Node"]:
        """The nodes a node reads; one that appends to a concatenation reads that one.

        A dense block concatenates all it has so far for each of its layers: drawn as it is
        written, its edges would be quadratic in number.
        """
        inputs = list(node.all_input_nodes)
        tensors = node.args[0] if node.args else None
        if _target(node) not in _CONCATENATIONS or not isinstance(tensors, (list, tuple)):
            return inputs
        axis = repr((node.args[1:], sorted(node.kwargs.items())))
        parts = tuple(tensors)
        shorter = self._concatenated.get((axis, parts[:-1]))
        self._concatenated.setdefault((axis, parts), node)
        return inputs if shorter is None else [shorter, parts[-1]]


def _target(node: "fx.Node") -> str:
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target) if node.op == "call_method" else node.op


def _word(plain: "fx.GraphModule", node: "fx.Node") -> str:
    """An operator in one word."""
    if node.op == "call_module":
        return type(plain.get_submodule(str(node.target))).__name__
    if node.op in ("placeholder", "output"):
        return "input" if node.op == "placeholder" else "output"
    word = _target(node).strip("_")
    return "add" if word in _ADDITIONS else "concat" if word in _CONCATENATIONS else word


def _mix_facts(layer: "nn.Module", cost: "MixCost", analysis: "Analysis") -> dict[str, Any]:
    inputs, outputs = _width(layer)
    return {
        "detail": _layer_in_words(layer),
        "reads": _channels(analysis, cost.reads),
        "writes": _channels(analysis, cost.writes),
        "inputs": inputs,
        "outputs": outputs,
        "macs": cost.total,
    }


def _channels(analysis: "Analysis", positions: Mapping[int, int]) -> Channels:
    """Channels of each site, from positions a unit."""
    return tuple(
        (site, count * analysis.sites[site].units) for site, count in sorted(positions.items())
    )


def _width(layer: "nn.Module | None") -> tuple[int, int]:
    """Channels a layer reads and writes; none where it is gone."""
    return tuple(  # type: ignore[return-value]
        int(getattr(layer, f"{side}_channels", getattr(layer, f"{side}_features", 0)))
        for side in ("in", "out")
    )


def _layer_in_words(layer: "nn.Module") -> str:
    kind = type(layer).__name__
    if not kind.startswith("Conv"):
        return kind.lower()
    kernel, stride, groups = (getattr(layer, key) for key in ("kernel_size", "stride", "groups"))
    words = ["transposed conv" if "Transpose" in kind else "conv", "x".join(map(str, kernel))]
    if groups > 1:
        depthwise = groups == layer.in_channels
        words[0] = "depthwise" if depthwise else f"{words[0]} in {groups} groups"
    if any(step > 1 for step in stride):
        words.append(f"/{stride[0] if len(set(stride)) == 1 else 'x'.join(map(str, stride))}")
    return " ".join(words)


def _carried(folding: _Folding, analysis: "Analysis") -> dict[int, Channels]:
    """The sites whose channels each joining operator passes on.

    They are what its mixing readers read. An addition that none reads directly passes on what the
    additions around it do, since its terms are cut together.
    """
    found: dict[int, dict[int, int]] = {place: {} for place in range(len(folding.shown))}
    for cost in analysis.costs:
        seen = found[folding.place[cost.mix.source]]
        for site, channels in _channels(analysis, cost.reads):
            seen[site] = max(channels, seen.get(site, 0))
    for shown, place in _additions(folding, reverse=True):
        for source in shown.sources:
            if not found[source]:
                found[source] = dict(found[place])
    written = {
        folding.heads[cost.mix.node]: dict(_channels(analysis, cost.writes))
        for cost in analysis.costs
    }
    for shown, place in _additions(folding, reverse=False):
        for source in sorted(shown.sources, key=lambda s: s not in written):
            found[place] = found[place] or written.get(source) or found[source]
    return {place: tuple(sorted(sites.items())) for place, sites in found.items()}


def _additions(folding: _Folding, *, reverse: bool) -> Iterator[tuple[_Shown, int]]:
    places = range(len(folding.shown))
    for place in reversed(places) if reverse else places:
        shown = folding.shown[place]
        if shown.kind == "join" and _target(shown.node) in _ADDITIONS:
            yield shown, place
