"""How many channels of a network can be removed independently, found by experiment.

Definition. A *slot* is an output channel of a mixing layer (a dense or grouped convolution, a
transposed one, a linear layer; a depthwise one only passes on). Masking a set of slots means that
every mixing layer reads zero where it would read them. A set is *removable* when some smaller
network of plain layers, those slots deleted from the weights, computes what the masked network
computes. A *unit* is a smallest removable set that is not empty; we count units.

Channel order is ours to choose: a layer may have its weights permuted, and a shuffle or a slice may
become other slices and concatenations. So nothing ties two slots but sharing a scalar:

- two slots that reach one input channel of a reader (through an addition, a product, a depthwise
  convolution, a normalisation, a pixel shuffle) stand or fall together, for that input channel can
  only be there or not;
- the input and output channels of one group of a grouped convolution do, for groups are equally
  wide: whole groups go;
- what reaches an output of the network, or comes from its image, stays;
- what no layer reads has nothing to mask.

The experiment uses the eager network and hooks: every mixing layer's result is replaced by random
numbers, which cuts the network into pieces without mixing; then one slot at a time gets other
numbers, and we look which input channels of which layers, and whether the outputs, change.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Slot = tuple[str, int]  # (layer, output channel)
Place = tuple[str, int]  # (layer, input channel)
_IMAGE: Slot = ("image", 0)
_OUTPUT: Place = ("output", 0)


def count_units(net: nn.Module, x: Tensor) -> int:
    """The number of units as defined above."""
    probe = _Probe(net.eval(), x)
    reached = probe.reached()
    classes = _Classes()
    for slot, places in reached.items():
        for place in places:
            classes.join(("writes", slot), ("reads", place))
    for layer, inputs, outputs in probe.groups():
        for channel in inputs:
            classes.join(("reads", (layer, channel)), ("reads", (layer, inputs[0])))
        for channel in outputs:
            classes.join(("writes", (layer, channel)), ("reads", (layer, inputs[0])))
    stay = {classes.root(("writes", _IMAGE)), classes.root(("reads", _OUTPUT))}
    read = {
        classes.root(("writes", slot))
        for slot, places in reached.items()
        if any(place != _OUTPUT for place in places)
    }
    return len(read - stay)


class _Classes:
    """Union-find."""

    def __init__(self) -> None:
        self.parents: dict[object, object] = {}

    def root(self, member: object) -> object:
        while (parent := self.parents.setdefault(member, member)) != member:
            member = parent
        return member

    def join(self, one: object, other: object) -> None:
        self.parents[self.root(one)] = self.root(other)


def _is_mixing(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.groups == 1 or module.groups < module.in_channels
    return isinstance(module, nn.Linear)


class _Probe:
    """Runs the network with random numbers in place of every mixing layer's result."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        self.net, self.x = net, x
        self.layers = {name: m for name, m in net.named_modules() if _is_mixing(m)}

    def slots(self) -> list[Slot]:
        return [
            (name, channel)
            for name, layer in self.layers.items()
            for channel in range(_widths(layer)[1])
        ]

    def groups(self) -> Iterator[tuple[str, range, range]]:
        """(layer, its input channels, its output channels) of each group of a grouped layer."""
        for name, layer in self.layers.items():
            groups = getattr(layer, "groups", 1)
            if groups > 1:
                read, written = (width // groups for width in _widths(layer))
                for group in range(groups):
                    yield (
                        name,
                        range(group * read, (group + 1) * read),
                        range(group * written, (group + 1) * written),
                    )

    def reached(self) -> dict[Slot, set[Place]]:
        """Where each slot, and the image, is seen."""
        usual = self._run(None)
        found: dict[Slot, set[Place]] = {}
        for slot in [*self.slots(), _IMAGE]:
            seen = self._run(slot)
            found[slot] = {place for place in usual if not torch.equal(usual[place], seen[place])}
        return found

    def _run(self, changed: Slot | None) -> dict[Place, Tensor]:
        seen: dict[Place, list[Tensor]] = {}
        generator = torch.Generator().manual_seed(0)
        other = torch.Generator().manual_seed(1)

        def replace(
            name: str, layer: nn.Module, args: tuple[Tensor, ...], result: Tensor
        ) -> Tensor:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            for channel, values in enumerate(args[0].unbind(axis)):
                seen.setdefault((name, channel), []).append(values.flatten().clone())
            numbers = torch.randn(result.shape, dtype=result.dtype, generator=generator)
            if changed is not None and changed[0] == name:
                part = numbers.select(axis, changed[1])
                part.copy_(torch.randn(part.shape, dtype=part.dtype, generator=other))
            return numbers

        x = torch.randn(self.x.shape, dtype=self.x.dtype, generator=other)
        if changed != _IMAGE:
            x = self.x.clone()
        with torch.no_grad(), _hooked(self.layers, replace):
            outputs = pytree.tree_leaves(self.net(x))
        seen[_OUTPUT] = [output.flatten() for output in outputs]
        return {place: torch.cat(values) for place, values in seen.items()}


def _widths(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


@contextmanager
def _hooked(layers: dict[str, nn.Module], replace) -> Iterator[None]:
    handles = [
        layer.register_forward_hook(
            lambda module, args, result, name=name: replace(name, module, args, result)
        )
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
