"""First stage, part: functions with weights, and layers from outside torch.nn, as plain layers.

A plain layer keeps the path of the layer that it replaces, so parameters keep their names.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torchvision.ops import StochasticDepth

from polarprune.errors import Refused
from polarprune.graph.computed_weights import Constants
from polarprune.graph.dead_code import drop_dead
from polarprune.graph.in_place import functionalise
from polarprune.graph.operator_tables import BATCH_NORMS, PLAIN_MODULES
from polarprune.graph.operators import argument, layer_type, module_of, operator_name
from polarprune.graph.shapes import Values
from polarprune.graph.tracing import Draft, is_norm_with_activation, same_padding_functions

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


class PlainLayers:
    """Lowers the nodes of one graph, in place."""

    def __init__(self, root: fx.GraphModule, owned: nn.Module) -> None:
        """Work on a graph that owns its layers.

        Args:
            owned: what was traced, with the modules that were traced through.
        """
        self.root = root
        self.owned = owned
        self.graph = root.graph
        self.constants = Constants(root)
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
        for node in list(self.graph.nodes):
            module = module_of(self.root, node)
            if module is not None:
                self._lower_module(node, module)
            elif node.op == "call_function" and node.target in self.rules:
                self.rules[node.target](node)
        self.constants.fold()
        self.constants.erase_unread()
        drop_dead(self.graph)
        lowered = bool(self.installed or self.parted)
        return lowered or not {(n.op, n.target) for n in self.graph.nodes} <= before

    def _install(self, node: fx.Node, layer: nn.Module, tensors: dict[str, Any]) -> None:
        """Put a layer in a functional call's place; `tensors` are its weight and bias nodes."""
        weight = tensors["weight"]
        path = (
            self.constants.owner(self.installed, *tensors.values()) if weight is not None else None
        )
        recipes = [self.constants.recipe(node) for node in tensors.values()]
        made_of = " ".join([layer.extra_repr(), *recipes])
        if path is not None and self.installed.get(path) == made_of:
            self._replace(node, path, node.args[0])  # a layer called twice stays one
            return
        derivations = {}
        for name, source in tensors.items():
            held, derived = self.constants.held(source)
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
            path = self.constants.free_name(f"{operator_name(node)}_{node.name}")
        self.installed[path] = made_of
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
        if not self.constants.can_hold(weight, bias) or weight is None or not node.args:
            return
        shape = self.constants.shape(weight)
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
        if not self.constants.can_hold(weight, bias) or weight is None or not node.args:
            return
        shape = self.constants.shape(weight)
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

    def _linear(self, node: fx.Node) -> None:
        weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
        if not self.constants.can_hold(weight, bias) or weight is None or not node.args:
            return
        rows, columns = self.constants.shape(weight)
        layer = nn.Linear(columns, rows, bias is not None, device="meta")
        self._install(node, layer, {"weight": weight, "bias": bias})

    def _layer_norm(self, node: fx.Node) -> None:
        shape = argument(node, 1, "normalized_shape")
        weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
        if not self.constants.can_hold(weight, bias) or _has_nodes(shape):
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
        if not self.constants.can_hold(weight, bias) or weight is None or bias is None:
            return
        count = self.constants.shape(weight)[0]
        layer = nn.GroupNorm(groups, count, argument(node, 4, "eps", 1e-5), device="meta")
        self._install(node, layer, {"weight": weight, "bias": bias})

    def _batch_norm(self, node: fx.Node) -> None:
        """One with running statistics, traced in evaluation mode; _verify sees both modes."""
        if node in self.constants.nodes:
            return
        mean, variance = argument(node, 1, "running_mean"), argument(node, 2, "running_var")
        weight, bias = argument(node, 3, "weight"), argument(node, 4, "bias")
        if mean is None or not self.constants.can_hold(mean, variance, weight, bias):
            return
        path = str(mean.target).rpartition(".")[0] if mean.op == "get_attr" else ""
        if not path or (weight is None) != (bias is None):
            return
        held = self.constants.attribute(mean)
        parts = dict(self.owned.named_modules())
        kind = next((k for k in BATCH_NORMS if isinstance(parts.get(path), k)), nn.BatchNorm2d)
        layer = kind(
            len(held), argument(node, 7, "eps", 1e-5), argument(node, 6, "momentum", 0.1),
            weight is not None, device="meta",
        )  # fmt: skip
        layer.running_mean, layer.running_var = held, self.constants.attribute(variance)
        layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=held.device)
        self._install(node, layer, {"weight": weight, "bias": bias})

    def _prelu(self, node: fx.Node) -> None:
        weight = argument(node, 1, "weight")
        if self.constants.can_hold(weight):
            layer = nn.PReLU(self.constants.shape(weight)[0], device="meta")
            self._install(node, layer, {"weight": weight})

    def _dropout(self, node: fx.Node) -> None:
        """F.dropout bakes `training` at trace time; a module follows train() and eval()."""
        if argument(node, 2, "training", True):
            raise Refused(
                f"{node.name} drops values in evaluation mode too; give it training=self.training"
            )
        path = self.constants.free_name(f"dropout_{node.name}")
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
                inside = self.constants.free_name(f"{path.replace('.', '_')}_{name}")
                self.root.add_module(inside, part)
                self.parted[path].append(inside)

    def _call_after(self, node: fx.Node, paths: list[str]) -> None:
        after = node
        for path in paths:
            users = list(after.users)
            written = _written_out(self.root.get_submodule(path))
            with self.graph.inserting_before(after.next):
                if written is None:
                    called = self.graph.call_module(path, (after,))
                else:
                    start = next(iter(written.nodes))
                    called = self.graph.graph_copy(written, {start: after})  # type: ignore[assignment]
            called.meta = dict(node.meta)
            for user in users:
                user.replace_input_with(after, called)
            after = called


def _written_out(part: nn.Module) -> fx.Graph | None:
    """What a layer from elsewhere computes of its input, where that is functions only."""
    if layer_type(part) in PLAIN_MODULES:
        return None
    try:
        graph = fx.Tracer().trace(part)
        functionalise(Draft(part, graph))
    except Exception:  # whatever its forward raises on a proxy: it is called as a whole
        return None
    calls = [node.op for node in graph.nodes]
    functions = set(calls[1:-1]) <= {"call_function", "call_method"}
    one_input = calls[0] == "placeholder" and calls.count("placeholder") == 1
    return graph if functions and one_input and len(calls) > 2 else None


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
