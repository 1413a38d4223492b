"""Fourth stage, the layers: smaller ones of the same type that hold the kept part of old ones.

Nothing is changed in place: a new layer takes the old one's path in the small graph.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from polarprune.graph.layers import layer_arguments
from polarprune.graph.operator_tables import BATCH_NORMS, INSTANCE_NORMS, TRANSPOSED
from polarprune.graph.operators import layer_type


@dataclass(frozen=True)
class Origin:
    """Where a parameter or buffer of the small network comes from.

    `kept` maps an axis to the indices that were kept of the old tensor, in their new order.
    """

    name: str
    kept: dict[int, Tensor]

    def slice(self, old: Tensor) -> Tensor:
        """The kept part of a tensor of the old shape (a weight, or optimizer state of it)."""
        for axis, indices in self.kept.items():
            old = old.index_select(axis, indices.to(old.device))
        return old

    def then(self, axis: int, indices: Tensor) -> "Origin":
        """This origin after a further cut along one axis."""
        earlier = self.kept.get(axis)
        return Origin(
            self.name, {**self.kept, axis: indices if earlier is None else earlier[indices]}
        )


class LayerSlicer:
    """Puts smaller layers and parameters into a graph, and remembers where each tensor is from."""

    def __init__(self, root: fx.GraphModule, origins: dict[str, Origin]) -> None:
        """Work on a graph whose containers are its own and whose layers may be shared."""
        self.root = root
        self.origins = origins

    def mix(self, layer: str, groups: int, inputs: np.ndarray, outputs: np.ndarray) -> None:
        """Keep these input and output positions, in this order; of a grouped one whole groups."""
        old = self.root.get_submodule(layer)
        kept_in, kept_out = torch.from_numpy(inputs), torch.from_numpy(outputs)
        linear = layer_type(old) is nn.Linear
        names = ("in_features", "out_features") if linear else ("in_channels", "out_channels")
        all_in, all_out = (int(getattr(old, name)) for name in names)
        if _whole(inputs, all_in) and _whole(outputs, all_out):
            return
        sizes = {names[0]: len(inputs), names[1]: len(outputs)}
        transposed = isinstance(old, TRANSPOSED)
        if groups > 1:
            # Whole groups go, so the axis inside a group keeps its length.
            sizes["groups"] = len(inputs) * groups // all_in
            axes = {0: kept_in if transposed else kept_out}
        else:
            axes = {0: kept_in, 1: kept_out} if transposed else {0: kept_out, 1: kept_in}
        self._replace(layer, sizes, {"weight": axes, "bias": {0: kept_out}})

    def per_channel(self, layer: str, kept: np.ndarray) -> None:
        """Keep these channels of a normalisation or PReLU."""
        old = self.root.get_submodule(layer)
        assert isinstance(old, (*BATCH_NORMS, *INSTANCE_NORMS, nn.PReLU))
        name = "num_parameters" if isinstance(old, nn.PReLU) else "num_features"
        if _whole(kept, getattr(old, name)):
            return
        axes = {0: torch.from_numpy(kept)}
        tensors = ("weight", "bias", "running_mean", "running_var")
        self._replace(layer, {name: len(kept)}, dict.fromkeys(tensors, axes))

    def parameter(self, name: str, axis: int, kept: np.ndarray) -> None:
        """Keep these positions of a parameter or buffer that the graph itself reads."""
        owner, _, child = name.rpartition(".")
        module = self.root.get_submodule(owner)
        old = getattr(module, child)
        if _whole(kept, old.shape[axis]):
            return
        indices = torch.from_numpy(kept)
        self.origins[name] = self.origins[name].then(axis, indices)
        sliced = old.detach().index_select(axis, indices.to(old.device))
        if isinstance(old, nn.Parameter):
            setattr(module, child, nn.Parameter(sliced, requires_grad=old.requires_grad))
        else:
            setattr(module, child, sliced)

    def materialise(self) -> None:
        """Parametrised layers (weight standardisation) as plain ones with the weight they have."""
        for node in self.root.graph.nodes:
            if node.op == "call_module":
                layer = str(node.target)
                module = self.root.get_submodule(layer)
                if parametrize.is_parametrized(module):
                    self._replace(layer, {}, {})

    def _replace(
        self, layer: str, sizes: dict[str, int], axes: dict[str, dict[int, Tensor]]
    ) -> None:
        """A layer like the old one with these sizes, and the kept part of each of its tensors."""
        old = self.root.get_submodule(layer)
        new = _like(old, sizes)
        for name, value in _tensors(old).items():
            kept = axes.get(name, {})
            full = f"{layer}.{name}"
            origin = self.origins.get(full) or self._original(layer, name, value)
            for axis, indices in kept.items():
                origin = None if origin is None else origin.then(axis, indices)
            if origin is not None:
                self.origins[full] = origin
            sliced = Origin(full, kept).slice(value.detach())
            if not kept:
                sliced = sliced.clone()
            if name in new._buffers:
                new._buffers[name] = sliced
            else:
                trained = value.requires_grad or not isinstance(value, nn.Parameter)
                new._parameters[name] = nn.Parameter(sliced, requires_grad=trained)
        parent, _, child = layer.rpartition(".")
        setattr(self.root.get_submodule(parent), child, new)

    def _original(self, layer: str, name: str, value: Tensor) -> Origin | None:
        """The parameter of the same shape that a parametrised weight is computed from."""
        prefix = f"{layer}.parametrizations.{name}."
        for full, tensor in self.root.named_parameters():
            if full.startswith(prefix) and tensor.shape == value.shape:
                return self.origins.get(full)
        return None


def _like(old: nn.Module, sizes: dict[str, int]) -> nn.Module:
    """A layer of the same plain type, without building it: its initialisation would be lost."""
    kind = layer_type(old)
    assert kind is not None
    if parametrize.is_parametrized(old):
        new = kind(**layer_arguments(old), device="meta").train(old.training)
    else:
        new = object.__new__(kind)
        held = {k: v.copy() if isinstance(v, dict) else v for k, v in old.__dict__.items()}
        new.__dict__.update(held)
    for name, size in sizes.items():
        setattr(new, name, size)
    return new


def _whole(kept: np.ndarray, count: Any) -> bool:
    """Whether every position is kept, in order."""
    return len(kept) == count and bool((kept[1:] > kept[:-1]).all())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a plain layer, parametrised ones as they are computed."""
    tensors: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    tensors.update(module.named_buffers(recurse=False))
    if parametrize.is_parametrized(module):
        with torch.no_grad():
            for name in module.parametrizations:  # type: ignore[union-attr]
                tensors[name] = getattr(module, name)
    return tensors
