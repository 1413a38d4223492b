"""A map of each channel by itself, multiplied into the mixing layer before or after it.

With y = W x + c and the map s, t: behind the layer, (s W) x + (s c + t); in front of it, (W s) x +
(c + W t). Weights and biases stay in float64 until `round_weights`, so that several maps into one
layer round once.
"""

from typing import Any

import torch
from torch import Tensor, nn

from polarprune_export.channel_maps import ChannelMap

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
MIXING = (*CONVOLUTIONS, nn.Linear)


class LayerWeights:
    """Changes layers in place, and remembers what to round in the end."""

    def __init__(self) -> None:
        self._dtypes: dict[nn.Module, torch.dtype] = {}

    def multiply_behind(self, layer: nn.Module, step: ChannelMap) -> None:
        """The layer's output becomes the map of it."""
        weight, bias = self._wide(layer)
        step = step.to(weight.device)
        if step.scale is not None:
            weight = weight * _along_outputs(layer, step.scale)
            bias = None if bias is None else bias * step.scale
        if step.shift is not None:
            bias = step.shift if bias is None else bias + step.shift
        _put(layer, weight, bias)

    def multiply_in_front(self, layer: nn.Module, step: ChannelMap) -> None:
        """The layer takes the map of its input; `reason_against_shift` says where it cannot."""
        weight, bias = self._wide(layer)
        step = step.to(weight.device)
        if step.shift is not None:
            moved = (weight * _along_inputs(layer, step.shift)).flatten(1).sum(1)
            bias = moved if bias is None else bias + moved
        if step.scale is not None:
            weight = weight * _along_inputs(layer, step.scale)
        _put(layer, weight, bias)

    def round_weights(self) -> None:
        """Everything that was changed, in the dtype that it had."""
        for layer, dtype in self._dtypes.items():
            weight, bias = self._wide(layer)
            _put(layer, weight.to(dtype), None if bias is None else bias.to(dtype))

    def _wide(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        weight, bias = layer.get_parameter("weight").detach(), layer.bias
        self._dtypes.setdefault(layer, weight.dtype)
        return weight.double(), bias.detach().double() if isinstance(bias, Tensor) else None


def channel_axis(layer: nn.Module, dims: int) -> int:
    """The axis of the channels in the input and in the output of a layer, of so many axes."""
    if isinstance(layer, nn.Linear):
        return dims - 1
    return dims - len(layer.kernel_size) - 1  # type: ignore[arg-type]


def reason_against_shift(layer: nn.Module) -> str | None:
    """Why a shift in front of the layer does not reach each of its outputs alike."""
    if isinstance(layer, TRANSPOSED):
        return "a transposed convolution reads a shift less often at its border"
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return None  # other paddings repeat what was shifted
    padding: Any = layer.padding
    if padding == "same":
        padding = [size - 1 for size in layer.kernel_size]  # type: ignore[union-attr]
    if padding == "valid" or not any(padding):
        return None
    return "the convolution pads with zeros, which a shift would change"


def _put(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    trained = layer.get_parameter("weight").requires_grad
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=trained)
    if bias is not None:
        layer.bias = nn.Parameter(bias.contiguous(), requires_grad=trained)


def _along_outputs(layer: nn.Module, vector: Tensor) -> Tensor:
    """One number an output channel, shaped to multiply the weight."""
    return _inner(layer, vector) if isinstance(layer, TRANSPOSED) else _outer(layer, vector)


def _along_inputs(layer: nn.Module, vector: Tensor) -> Tensor:
    """One number an input channel, shaped to multiply the weight."""
    return _outer(layer, vector) if isinstance(layer, TRANSPOSED) else _inner(layer, vector)


def _outer(layer: nn.Module, vector: Tensor) -> Tensor:
    """Along axis 0, which counts the channels of all groups."""
    return vector.reshape(-1, *[1] * (layer.get_parameter("weight").dim() - 1))


def _inner(layer: nn.Module, vector: Tensor) -> Tensor:
    """Along axis 1, which counts the channels of one group: another number for each group."""
    weight = layer.get_parameter("weight")
    groups = int(getattr(layer, "groups", 1))
    per_group = vector.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
    return per_group.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
