"""First stage, part: functions with weights, and layers from outside torch.nn, as plain layers.

A plain layer keeps the path of the layer that it replaces, so parameters keep their names.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torchvision.ops import StochasticDepth

from polarprune.errors import Refused
from polarprune.graph.operators import BATCH_NORMS, argument, module_of, operator_name
from polarprune.graph.shapes import Values
from polarprune.graph.tracing import is_norm_with_activation, same_padding_functions

_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
}
_CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
    torch.conv1d: nn.Conv1d,
    torch.conv2d: nn.Conv2d,
    torch.conv3d: nn.Conv3d,
}
_TRANSPOSED: dict[Any, type[nn.Module]] = {
    F.conv_transpose1d: nn.ConvTranspose1d,
    F.conv_transpose2d: nn.ConvTranspose2d,
    F.conv_transpose3d: nn.ConvTranspose3d,
}


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


class PlainLayers:
    """Lowers the nodes of one graph, in place."""

    def __init__(self, root: fx.GraphModule) -> None:
        """Work on a graph that owns its layers."""
        self.root = root
        self.graph = root.graph
        self.installed: dict[str, str] = {}
        self.parted: dict[str, list[str]] = {}
        self.rules: dict[Any, Callable[[fx.Node], None]] = {
            **dict.fromkeys(_CONVOLUTIONS, self._convolution),
            **dict.fromkeys(_TRANSPOSED, self._transposed),
            **dict.fromkeys(_DROPOUTS, self._dropout),
            F.linear: self._linear,
            F.layer_norm: self._layer_norm,
            F.group_norm: self._group_norm,
            F.batch_norm: self._batch_norm,
            F.prelu: self._prelu,
            torch.prelu: self._prelu,
        }

    def lower(self) -> bool:
        """Everything that has a plain layer becomes one; whether anything did."""
        before = {(node.op, node.target) for node in self.graph.nodes}
        self.constant = self._constant_nodes()
        for node in list(self.graph.nodes):
            module = module_of(self.root, node)
            if module is not None:
                self._lower_module(node, module)
            elif node.op == "call_function" and node.target in self.rules:
                self.rules[node.target](node)
        self._fold_constants()
        for node in reversed(self.graph.nodes):
            # Before a lint: what they read may lie in a layer that has been replaced.
            if node in self.constant and not node.users:
                self.graph.erase_node(node)
        self.graph.eliminate_dead_code()
        lowered = bool(self.installed or self.parted)
        return lowered or not {(n.op, n.target) for n in self.graph.nodes} <= before

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

    def _fold_constants(self) -> None:
        """What depends on buffers and numbers only, not on a parameter, is computed now."""
        for node in list(self.graph.nodes):
            if node.op not in ("call_function", "call_method") or node not in self.constant:
                continue
            if any(user in self.constant for user in node.users) or not node.users:
                continue
            sources = self._sources(node)
            if any(isinstance(self._attribute(s), nn.Parameter) for s in sources):
                continue
            value = self._evaluate(node)
            if isinstance(value, Tensor):
                name = self._free_name(node.name)
                self.root.register_buffer(name, value.detach().clone())
                with self.graph.inserting_before(node):
                    node.replace_all_uses_with(self.graph.get_attr(name))

    # Weights

    def _attribute(self, node: fx.Node) -> Any:
        value: Any = self.root
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """The parameters and buffers that a constant node is computed from."""
        seen, todo = {node}, [node]
        while todo:
            for source in todo.pop().all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    todo.append(source)
        return [n for n in self.graph.nodes if n in seen and n.op == "get_attr"]

    def _derivation(self, node: fx.Node, original: fx.Node | None) -> fx.GraphModule:
        """The graph that computes a constant node; `original` becomes its input."""
        needed, todo = {node}, [node]
        while todo:
            for source in todo.pop().all_input_nodes:
                if source not in needed:
                    needed.add(source)
                    todo.append(source)
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        if original is not None:
            copied[original] = graph.placeholder("original")
        for old in self.graph.nodes:
            if old in needed and old not in copied:
                copied[old] = graph.node_copy(old, lambda n: copied[n])
        graph.output(copied[node])
        return fx.GraphModule(self.root, graph)

    def _evaluate(self, node: fx.Node) -> Any:
        with torch.no_grad():
            return self._derivation(node, None)()

    def _weight(self, node: Any) -> tuple[Tensor | None, Derived | None]:
        """(tensor to hold, how the weight is computed from it) of a constant argument."""
        if node is None:
            return None, None
        if node.op == "get_attr":
            return self._attribute(node), None
        value = self._evaluate(node)
        sources = self._sources(node)
        alike = [
            s for s in sources
            if isinstance(self._attribute(s), nn.Parameter)
            and self._attribute(s).shape == value.shape
        ]  # fmt: skip
        if not alike:
            return value, None
        return self._attribute(alike[0]), Derived(self._derivation(node, alike[0]))

    def _is_constant(self, *nodes: Any) -> bool:
        return all(n is None or (isinstance(n, fx.Node) and n in self.constant) for n in nodes)

    def _owner(self, *constants: fx.Node | None) -> str | None:
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
        return None if inside and path not in self.installed else path

    def _leaves(self, constant: fx.Node) -> list[fx.Node]:
        return [constant] if constant.op == "get_attr" else self._sources(constant)

    def _free_name(self, wanted: str) -> str:
        name, count = wanted, 0
        while hasattr(self.root, name):
            count += 1
            name = f"{wanted}_{count}"
        return name

    def _install(self, node: fx.Node, layer: nn.Module, tensors: dict[str, Any]) -> None:
        """Put a layer in a functional call's place; `tensors` are its weight and bias nodes."""
        weight = tensors["weight"]
        path = self._owner(*tensors.values()) if weight is not None else None
        if path is not None and self.installed.get(path) == layer.extra_repr():
            self._replace(node, path, node.args[0])  # a layer called twice stays one
            return
        derivations = {}
        for name, source in tensors.items():
            held, derived = self._weight(source)
            if derived is not None:
                derivations[name] = derived
            if held is not None and not isinstance(held, nn.Parameter):
                held = nn.Parameter(held.detach().clone(), requires_grad=False)
            setattr(layer, name, held)
        layer.eval()
        for name, derived in derivations.items():
            # What it is derived to was found by running it: no need for torch's own checks.
            parametrize.register_parametrization(layer, name, derived, unsafe=True)
        if path is None or path in self.installed:
            path = self._free_name(f"{operator_name(node)}_{node.name}")
        self.installed[path] = layer.extra_repr()
        self._put(path, layer)
        self._replace(node, path, node.args[0])

    def _replace(self, node: fx.Node, path: str, *args: Any) -> fx.Node:
        with self.graph.inserting_before(node):
            lowered = self.graph.call_module(path, args)
        lowered.meta = dict(node.meta)
        node.replace_all_uses_with(lowered)
        self.graph.erase_node(node)
        return lowered

    # Functions

    def _convolution(self, node: fx.Node) -> None:
        weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
        if not self._is_constant(weight, bias) or weight is None or not node.args:
            return
        shape = self._weight_shape(weight)
        stride, padding = argument(node, 3, "stride", 1), argument(node, 4, "padding", 0)
        dilation, groups = argument(node, 5, "dilation", 1), argument(node, 6, "groups", 1)
        if _has_nodes(stride, padding, dilation, groups):
            return
        layer = _CONVOLUTIONS[node.target](
            shape[1] * groups, shape[0], tuple(shape[2:]), stride, padding, dilation, groups,
            bias is not None, device="meta",
        )  # fmt: skip
        self._install(node, layer, {"weight": weight, "bias": bias})

    def _transposed(self, node: fx.Node) -> None:
        weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
        if not self._is_constant(weight, bias) or weight is None or not node.args:
            return
        shape = self._weight_shape(weight)
        names = ("stride", "padding", "output_padding", "groups", "dilation")
        defaults = (1, 0, 0, 1, 1)
        values = [argument(node, 3 + i, n, defaults[i]) for i, n in enumerate(names)]
        if _has_nodes(*values):
            return
        stride, padding, output_padding, groups, dilation = values
        layer = _TRANSPOSED[node.target](
            shape[0], shape[1] * groups, tuple(shape[2:]), stride, padding, output_padding, groups,
            bias is not None, dilation, device="meta",
        )  # fmt: skip
        self._install(node, layer, {"weight": weight, "bias": bias})

    def _weight_shape(self, node: fx.Node) -> list[int]:
        value = self._attribute(node) if node.op == "get_attr" else self._evaluate(node)
        return list(value.shape)

    def _linear(self, node: fx.Node) -> None:
        weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
        if not self._is_constant(weight, bias) or weight is None or not node.args:
            return
        rows, columns = self._weight_shape(weight)
        layer = nn.Linear(columns, rows, bias is not None, device="meta")
        self._install(node, layer, {"weight": weight, "bias": bias})

    def _layer_norm(self, node: fx.Node) -> None:
        shape = argument(node, 1, "normalized_shape")
        weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
        if not self._is_constant(weight, bias) or _has_nodes(shape):
            return
        if weight is None and bias is not None:
            return
        eps = argument(node, 4, "eps", 1e-5)
        layer = nn.LayerNorm(
            tuple(shape), eps, weight is not None, bias=bias is not None, device="meta"
        )
        self._install(node, layer, {"weight": weight, "bias": bias})

    def _group_norm(self, node: fx.Node) -> None:
        groups = argument(node, 1, "num_groups")
        weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
        if not self._is_constant(weight, bias) or weight is None or bias is None:
            return
        count = self._weight_shape(weight)[0]
        layer = nn.GroupNorm(groups, count, argument(node, 4, "eps", 1e-5), device="meta")
        self._install(node, layer, {"weight": weight, "bias": bias})

    def _batch_norm(self, node: fx.Node) -> None:
        """One with running statistics, traced in evaluation mode; _verify sees both modes."""
        if node in self.constant:
            return
        mean, variance = argument(node, 1, "running_mean"), argument(node, 2, "running_var")
        weight, bias = argument(node, 3, "weight"), argument(node, 4, "bias")
        if mean is None or not self._is_constant(mean, variance, weight, bias):
            return
        path = str(mean.target).rpartition(".")[0] if mean.op == "get_attr" else ""
        if not path or (weight is None) != (bias is None):
            return
        held = self._attribute(mean)
        layer = nn.BatchNorm2d(
            len(held), argument(node, 7, "eps", 1e-5), argument(node, 6, "momentum", 0.1),
            weight is not None, device="meta",
        )  # fmt: skip
        layer.running_mean, layer.running_var = held, self._attribute(variance)
        layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=held.device)
        self._install(node, layer, {"weight": weight, "bias": bias})

    def _prelu(self, node: fx.Node) -> None:
        weight = argument(node, 1, "weight")
        if self._is_constant(weight):
            layer = nn.PReLU(self._weight_shape(weight)[0], device="meta")
            self._install(node, layer, {"weight": weight})

    def _dropout(self, node: fx.Node) -> None:
        """F.dropout bakes `training` at trace time; a module follows train() and eval()."""
        if argument(node, 2, "training", True):
            raise Refused(f"{node.name} drops values in evaluation mode too: not a function")
        path = self._free_name(f"dropout_{node.name}")
        kind = _DROPOUTS[node.target]
        self.root.add_module(path, kind(float(argument(node, 1, "p", 0.5))))
        self._replace(node, path, node.args[0])

    # Layers

    def _lower_module(self, node: fx.Node, module: nn.Module) -> None:
        path = str(node.target)
        if type(module).__name__ == "DropPath" and hasattr(module, "drop_prob"):
            if not getattr(module, "scale_by_keep", True):
                return
            probability: Any = module.drop_prob or 0.0
            layer = StochasticDepth(float(probability), "row")
            self._put(path, layer.train(module.training))
        elif is_norm_with_activation(module):
            self._part_norm(path, module)
        if path in self.parted:
            self._call_after(node, self.parted[path])

    def _put(self, path: str, layer: nn.Module) -> None:
        parent, _, child = path.rpartition(".")
        setattr(self.root.get_submodule(parent), child, layer)

    def _part_norm(self, path: str, module: nn.Module) -> None:
        """A norm with an activation of its own, as a norm and an activation."""
        kind = next(k for k in BATCH_NORMS if isinstance(module, k))
        norm = object.__new__(kind)
        norm.__dict__ = dict(module.__dict__)
        norm._modules = {}
        self._put(path, norm)
        self.parted[path] = []
        for name in ("drop", "act"):
            part = getattr(module, name)
            if not isinstance(part, nn.Identity):
                inside = self._free_name(f"{path.replace('.', '_')}_{name}")
                self.root.add_module(inside, part)
                self.parted[path].append(inside)

    def _call_after(self, node: fx.Node, paths: list[str]) -> None:
        after = node
        for path in paths:
            with self.graph.inserting_after(after):
                called = self.graph.call_module(path, (after,))
            called.meta = dict(node.meta)
            for user in [u for u in after.users if u is not called]:
                user.replace_input_with(after, called)
            after = called


def lower_same_padding(root: fx.GraphModule, values: Values) -> bool:
    """Timm's padding to the size of the input as a fixed one; whether there was any.

    Fixed to the size of the example: exact for that size.
    """
    wrapped = same_padding_functions()
    found = False
    for node in list(root.graph.nodes):
        if node.op != "call_function" or node.target not in wrapped:
            continue
        found = True
        height, width = values[node.args[0].name].shape[-2:]
        kernel, stride = argument(node, 1, "kernel_size"), argument(node, 2, "stride")
        dilation, value = argument(node, 3, "dilation", (1, 1)), argument(node, 4, "value", 0)
        amounts: list[int] = []
        for place, size in ((1, width), (0, height)):
            k, s, d = (_at(v, place) for v in (kernel, stride, dilation))
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            amounts += [total // 2, total - total // 2]
        stand_in = node.args[0]
        if any(amounts):
            mode = ("constant", float(value)) if value else ()
            with root.graph.inserting_before(node):
                stand_in = root.graph.call_function(F.pad, (node.args[0], tuple(amounts), *mode))
        node.replace_all_uses_with(stand_in)
        root.graph.erase_node(node)
    return found


def _at(value: Any, place: int) -> int:
    return int(value[place]) if isinstance(value, tuple | list) else int(value)


def _has_nodes(*values: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(values, found.append)
    return bool(found)
