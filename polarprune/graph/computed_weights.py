"""First stage, part: what a graph computes from parameters and numbers only.

A weight that is computed (weight standardisation) becomes a torch parametrisation of its layer, so
that it goes on being learned as it was; what depends on buffers alone is computed now.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn


class Derived(nn.Module):
    """Computes a weight from parameters (weight standardisation), as torch's parametrisations do.

    `forward` gets the parameter of the weight's own shape; the others are read by the graph.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        """Wrap a graph of one input."""
        super().__init__()
        self.compute = graph_module

    def forward(self, original: Tensor) -> Tensor:
        """The weight."""
        return self.compute(original)  # type: ignore[no-any-return]


class Constants:
    """The constant nodes of one graph."""

    def __init__(self, root: fx.GraphModule) -> None:
        """Find them."""
        self.root = root
        self.graph = root.graph
        self.nodes = self._constant_nodes()
        # As they are now: a layer that takes another's place changes what a path leads to.
        self.values = {str(n.target): self._find(n) for n in self.nodes if n.op == "get_attr"}

    def _constant_nodes(self) -> set[fx.Node]:
        """Nodes that are computed from parameters and numbers only."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            inputs = node.all_input_nodes
            if node.op == "get_attr" or (
                node.op in ("call_function", "call_method")
                and inputs
                and all(source in found for source in inputs)
            ):
                found.add(node)
        return found

    def fold(self) -> None:
        """What depends on buffers and numbers only, not on a parameter, is computed now."""
        for node in list(self.graph.nodes):
            if node.op not in ("call_function", "call_method") or node not in self.nodes:
                continue
            if any(user in self.nodes for user in node.users) or not node.users:
                continue
            sources = self._sources(node)
            if any(isinstance(self.attribute(s), nn.Parameter) for s in sources):
                continue
            value = self._evaluate(node)
            if isinstance(value, Tensor):
                name = self.free_name(node.name)
                self.root.register_buffer(name, value.detach().clone())
                with self.graph.inserting_before(node):
                    node.replace_all_uses_with(self.graph.get_attr(name))

    def attribute(self, node: fx.Node) -> Any:
        """What a get_attr node reads."""
        return self.values[str(node.target)]

    def _find(self, node: fx.Node) -> Any:
        value: Any = self.root
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """The parameters and buffers that a constant node is computed from."""
        needed = _needed(node)
        return [n for n in self.graph.nodes if n in needed and n.op == "get_attr"]

    def _derivation(self, node: fx.Node, original: fx.Node | None) -> fx.GraphModule:
        """The graph that computes a constant node; `original` becomes its input."""
        needed = _needed(node)
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        if original is not None:
            copied[original] = graph.placeholder("original")
        for old in self.graph.nodes:
            if old in needed and old not in copied:
                copied[old] = graph.node_copy(old, lambda n: copied[n])
        graph.output(copied[node])
        targets = [str(n.target) for n in graph.nodes if n.op == "get_attr"]
        return fx.GraphModule({target: self.values[target] for target in targets}, graph)

    def _evaluate(self, node: fx.Node) -> Any:
        with torch.no_grad():
            return self._derivation(node, None)()

    def held(self, node: Any) -> tuple[Tensor | None, Derived | None]:
        """(tensor to hold, how the weight is computed from it) of a constant argument."""
        if node is None:
            return None, None
        if node.op == "get_attr":
            return self.attribute(node), None
        value = self._evaluate(node)
        sources = self._sources(node)
        alike = [
            s for s in sources
            if isinstance(self.attribute(s), nn.Parameter)
            and self.attribute(s).shape == value.shape
        ]  # fmt: skip
        if not alike:
            return value, None
        return self.attribute(alike[0]), Derived(self._derivation(node, alike[0]))

    def recipe(self, node: fx.Node | None) -> str:
        """How a constant is computed: two of one recipe are equal, whatever is learned."""
        if node is None or node.op == "get_attr":
            return "-" if node is None else str(node.target)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.recipe)
        return f"{node.op} {node.target} {args} {kwargs}"

    def can_hold(self, *nodes: Any) -> bool:
        """Whether these arguments are constants that a layer can hold and go on learning.

        One that is computed from parameters needs one among them of its own shape.
        """
        return all(n is None or (isinstance(n, fx.Node) and self._can_hold(n)) for n in nodes)

    def _can_hold(self, node: fx.Node) -> bool:
        if node not in self.nodes or node.op == "get_attr":
            return node in self.nodes
        learned = [p for p in map(self.attribute, self._sources(node)) if _is_learned(p)]
        return not learned or any(p.shape == self._evaluate(node).shape for p in learned)

    def shape(self, node: fx.Node) -> list[int]:
        """The shape of a constant."""
        value = self.attribute(node) if node.op == "get_attr" else self._evaluate(node)
        return list(value.shape)

    def erase_unread(self) -> None:
        """Drop what nobody reads, before a lint: it may have lain in a replaced layer."""
        for node in reversed(self.graph.nodes):
            if node in self.nodes and not node.users:
                self.graph.erase_node(node)

    def owner(self, installed: dict[str, str], *constants: fx.Node | None) -> str | None:
        """The path of the layer that holds a weight (the first) and all that goes with it.

        None where something else that is read lies there too: the new layer can't take its place.
        """
        sources = [s for c in constants if c is not None for s in self._leaves(c)]
        owners = [str(s.target).rpartition(".") for s in sources]
        paths = [owner for owner, _, child in owners if owner and child == "weight"]
        if not paths:
            return None
        path = paths[0]
        own = {str(s.target) for s in sources}
        others = {str(n.target) for n in self.graph.nodes if n.op != "call_function"} - own
        inside = any(target == path or target.startswith(f"{path}.") for target in others)
        return None if inside and path not in installed else path

    def _leaves(self, constant: fx.Node) -> list[fx.Node]:
        return [constant] if constant.op == "get_attr" else self._sources(constant)

    def free_name(self, wanted: str) -> str:
        """This name, or one like it that the graph module does not have yet."""
        name, count = wanted, 0
        while hasattr(self.root, name):
            count += 1
            name = f"{wanted}_{count}"
        return name


def _is_learned(value: Any) -> bool:
    return isinstance(value, nn.Parameter)


def _needed(node: fx.Node) -> set[fx.Node]:
    """A node and all that it is computed from."""
    found, todo = {node}, [node]
    while todo:
        new = set(todo.pop().all_input_nodes) - found
        found |= new
        todo += new
    return found
