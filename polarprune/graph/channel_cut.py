"""Fourth stage, the channels: every layer keeps its open positions, every argument its sizes."""

import numpy as np
from torch import fx

from polarprune.errors import Refused
from polarprune.graph.dead_code import drop_dead
from polarprune.graph.labels import Labelled, Labels, Mix
from polarprune.graph.movement_cut import MovementCut
from polarprune.graph.operators import Family, family_of, module_of, operator_name
from polarprune.graph.orders import Order, Orders
from polarprune.graph.sizes import size_read
from polarprune.graph.slicing import LayerSlicer

_PASSING = (Family.ELEMENTWISE, Family.SPATIAL, Family.NORMALISE, Family.REDUCE)


def cut_channels(
    graph_module: fx.GraphModule, labels: Labels, dead: np.ndarray, slicer: LayerSlicer
) -> None:
    """Take dead labels out of every layer and argument, in place.

    Args:
        labels: of this graph.
        dead: per label.

    Raises:
        Refused: a tensor would be left without a channel.
    """
    _ChannelCut(graph_module, labels, dead, slicer).run()


class _ChannelCut:
    """One pass over the graph, in its order."""

    def __init__(
        self, root: fx.GraphModule, labels: Labels, dead: np.ndarray, slicer: LayerSlicer
    ) -> None:
        self.root = root
        self.labels = labels
        self.slicer = slicer
        self.mixes = {mix.node: mix for mix in labels.mixes}
        self.orders = Orders(root.graph, labels, dead)
        self.movement = MovementCut(self.orders)
        self.sliced: dict[str, tuple[Order, ...]] = {}

    def run(self) -> None:
        self._drop_empty_tensors()
        nodes = list(self.root.graph.nodes)
        for node in nodes:
            self._fix_size(node)
        for node in nodes:
            self._visit(node)
        self.orders.finish()

    def _drop_empty_tensors(self) -> None:
        """A tensor without a channel left leaves a concatenation; elsewhere it has no live user."""
        dead, graph = self.orders.dead, self.root.graph
        empty = {n for n, t in self.orders.tensors.items() if bool(dead[t.ids].all())}
        if not empty:
            return
        for node in graph.nodes:
            if operator_name(node) in ("cat", "concat") and node not in empty:
                operands = node.args[0]
                assert isinstance(operands, tuple | list)
                kept = [n for n in operands if n not in empty]
                node.args = (kept, *node.args[1:])
        drop_dead(graph)
        for node in graph.nodes:
            if node in empty and node.op != "get_attr":
                raise Refused(f"{node.name} would be left without a channel; keep one open")

    def _fix_size(self, node: fx.Node) -> None:
        """A size that the cut changes becomes the number that it was; views are put right later."""
        read = size_read(node)
        tensor = self.orders.tensors.get(read[0]) if read else None
        if read is None or tensor is None or tensor.axis is None:
            return
        if read[1] % len(tensor.shape) != tensor.axis or not self.orders.dead[tensor.ids].any():
            return
        number = tensor.shape[tensor.axis]
        for user in list(node.users):
            user.args = fx.node.map_arg(user.args, lambda n: number if n is node else n)
            user.kwargs = fx.node.map_arg(user.kwargs, lambda n: number if n is node else n)

    def _visit(self, node: fx.Node) -> None:
        module = module_of(self.root, node)
        family = family_of(node, module)
        if node.op == "get_attr":
            self._slice_parameter(node)
        elif node.name in self.mixes:
            self._mix(node, self.mixes[node.name])
        elif family is Family.PER_CHANNEL:
            self._per_channel(node)
        elif family in _PASSING and node in self.orders.tensors:
            self.orders.pass_on(node)
        elif family is Family.BINARY:
            self._binary(node)
        elif family is Family.MOVE and node.all_input_nodes:
            self.movement.move(node, module)
        else:
            self.orders.want_natural(node)

    def _mix(self, node: fx.Node, mix: Mix) -> None:
        source = node.all_input_nodes[0]
        inputs = self.orders.along(source, mix.axis)
        outputs = self.orders.natural(Labelled(mix.outputs, mix.axis, ()))
        if mix.depthwise:
            each = len(mix.outputs) // len(mix.inputs)
            outputs = (inputs[:, None] * each + np.arange(each)).reshape(-1)
        elif mix.groups > 1:
            inputs = np.sort(inputs)
        if mix.layer not in self.sliced:
            self.sliced[mix.layer] = (inputs, outputs)
            self.slicer.mix(mix.layer, mix.groups, inputs, outputs)
        inputs, outputs = self.sliced[mix.layer]
        if self.orders.tensors[source].axis == mix.axis:
            self.orders.reorder(node, source, inputs)
        self.orders.put(node, outputs)

    def _per_channel(self, node: fx.Node) -> None:
        source, layer = node.all_input_nodes[0], str(node.target)
        if layer not in self.labels.norms:
            self.orders.want_natural(node)
            return
        if layer not in self.sliced:
            kept = self.orders.along(source, 1)
            self.sliced[layer] = (kept,)
            self.slicer.per_channel(layer, kept)
        (kept,) = self.sliced[layer]
        if self.orders.tensors[source].axis == 1:
            self.orders.reorder(node, source, kept)
        self.orders.put(node, kept)

    def _binary(self, node: fx.Node) -> None:
        result = self.orders.tensors.get(node)
        if result is None or result.axis is None:
            self.orders.want_natural(node)
            return
        operands = [n for n in node.all_input_nodes if n in self.orders.tensors]
        shift = [len(result.shape) - len(self.orders.tensors[n].shape) for n in operands]
        self.orders.agree(node, operands, [result.axis - by for by in shift])

    def _slice_parameter(self, node: fx.Node) -> None:
        tensor, name = self.orders.tensors.get(node), str(node.target)
        if tensor is None or tensor.axis is None or name in self.sliced:
            return
        if name in self.labels.parameters:
            self.sliced[name] = ()
            self.slicer.parameter(name, tensor.axis, self.orders.natural(tensor))
