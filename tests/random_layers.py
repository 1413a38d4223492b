"""Single layers, as module, function, method or arithmetic: all that stands between the idioms."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from random_descriptions import block
from random_fitting import largest_divisor
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import StochasticDepth, stochastic_depth

# Convolutions


class _StandardisedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class _FunctionalConv2d(nn.Module):
    def __init__(self, *sizes: int, bias: bool, **options: Any) -> None:
        super().__init__()
        layer = nn.Conv2d(*sizes, bias=bias, **options)
        self.weight, self.bias = layer.weight, layer.bias
        options.pop("padding_mode")
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, **self.options)


@block(
    kernel=(3, 1, 2, 5, 4),
    width=("same", "more", "fewer"),
    groups=("dense", "depthwise", "grouped", "multiplied"),
    stride=(1, 2),
    dilation=(1, 2),
    padding=("half", "same", "none"),
    padding_mode=("zeros", "reflect", "replicate", "circular"),
    bias=(True, False),
    written=("module", "module", "parameter", "standardised", "weight norm"),
)
class Conv(nn.Module):
    def __init__(self, x: Tensor, kernel: int, width: str, groups: str, **options: Any) -> None:
        super().__init__()
        before = x.shape[1]
        after = {"same": before, "more": before + 3, "fewer": max(2, before - 3)}[width]
        parts = 1
        if groups in ("depthwise", "multiplied"):
            parts, after = before, before * (1 if groups == "depthwise" else 2)
        elif groups == "grouped":
            parts = largest_divisor(before, 4, 3, 2)
            after = max(1, after // parts) * parts
        written, padding = options.pop("written"), options.pop("padding")
        if min(x.shape[2:]) < 6:
            kernel = min(kernel, 3)
            options |= {"stride": 1, "dilation": 1}
            padding = "half"
        if options["dilation"] * (kernel - 1) >= min(x.shape[2:]):
            options["dilation"] = 1
        if padding == "same":
            kernel, options["stride"] = kernel // 2 * 2 + 1, 1  # torch warns of even ones
        else:
            padding = options["dilation"] * (kernel - 1) // 2 if padding == "half" else 0
        if written in ("parameter", "standardised"):
            options["padding_mode"] = "zeros"
        kinds = {"parameter": _FunctionalConv2d, "standardised": _StandardisedConv2d}
        layer = kinds.get(written, nn.Conv2d)(
            before, after, kernel, groups=parts, padding=padding, **options
        )
        self.layer = parametrizations.weight_norm(layer) if written == "weight norm" else layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@block(
    kernel=(2, 4, 3), stride=(2, 1), groups=("dense", "grouped", "depthwise"),
    output_padding=(0, 1), bias=(True, False),
)  # fmt: skip
class Transposed(nn.Module):
    def __init__(self, x: Tensor, kernel: int, stride: int, groups: str, **options: Any) -> None:
        super().__init__()
        width = x.shape[1]
        stride = 1 if max(x.shape[2:]) > 9 else stride
        options["output_padding"] = min(options["output_padding"], stride - 1)
        parts = {"dense": 1, "depthwise": width, "grouped": largest_divisor(width, 4, 2)}[groups]
        after = width if groups == "depthwise" else max(1, (width + 2) // parts) * parts
        self.layer = nn.ConvTranspose2d(
            width, after, kernel, stride, (kernel - stride) // 2 if kernel > stride else 0,
            groups=parts, **options,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


# Norms


class _ChannelsLastNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _FunctionalLayerNorm(nn.Module):
    """ConvNeXt's own `channels_first`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.bias = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class _FunctionalGroupNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.groups = largest_divisor(width, 2)
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, self.weight)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "batch, not affine": partial(nn.BatchNorm2d, affine=False),
    "batch, no statistics": partial(nn.BatchNorm2d, track_running_stats=False),
    "batch, cumulative": partial(nn.BatchNorm2d, momentum=None),
    "instance": nn.InstanceNorm2d,
    "instance, affine": partial(nn.InstanceNorm2d, affine=True),
    "group": lambda width: nn.GroupNorm(largest_divisor(width, 4, 3, 2), width),
    "group of all": lambda width: nn.GroupNorm(1, width),
    "group of one": lambda width: nn.GroupNorm(width, width),
    "group, function": _FunctionalGroupNorm,
    "layer": _ChannelsLastNorm,
    "layer, arithmetic": _FunctionalLayerNorm,
}


@block(kind=("batch", "batch", *list(_NORMS)[1:]))
class Norm(nn.Module):
    def __init__(self, x: Tensor, kind: str) -> None:
        super().__init__()
        self.layer = _NORMS[kind](x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


# Activations

_ACTIVATION_MODULES: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": lambda _: nn.ReLU(),
    "ReLU in place": lambda _: nn.ReLU(inplace=True),
    "ReLU6": lambda _: nn.ReLU6(),
    "LeakyReLU in place": lambda _: nn.LeakyReLU(0.1, inplace=True),
    "GELU": lambda _: nn.GELU(approximate="tanh"),
    "SiLU in place": lambda _: nn.SiLU(inplace=True),
    "Hardswish": lambda _: nn.Hardswish(),
    "Hardsigmoid": lambda _: nn.Hardsigmoid(),
    "ELU": lambda _: nn.ELU(0.7),
    "CELU": lambda _: nn.CELU(),
    "SELU": lambda _: nn.SELU(),
    "Mish": lambda _: nn.Mish(),
    "Softplus": lambda _: nn.Softplus(),
    "Softsign": lambda _: nn.Softsign(),
    "Hardtanh": lambda _: nn.Hardtanh(-0.5, 0.7),
    "Sigmoid": lambda _: nn.Sigmoid(),
    "Tanh": lambda _: nn.Tanh(),
    "PReLU shared": lambda _: nn.PReLU(),
    "PReLU": nn.PReLU,
}
_ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "F.relu in place": partial(F.relu, inplace=True),
    "torch.relu": torch.relu,
    "x.relu": lambda x: x.relu(),
    "x.relu_": lambda x: x.relu_(),
    "x.clamp": lambda x: x.clamp(min=0),
    "x.clamp_": lambda x: x.clamp_(0, 3),
    "torch.clamp": lambda x: torch.clamp(x, -1, 1),
    "F.gelu": F.gelu,
    "F.silu": F.silu,
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "F.hardswish": F.hardswish,
    "F.elu": F.elu,
    "F.mish": F.mish,
    "F.softplus": F.softplus,
    "torch.sigmoid": torch.sigmoid,
    "x.sigmoid": lambda x: x.sigmoid(),
    "torch.tanh": torch.tanh,
    "x.exp": lambda x: x.clamp(max=1).exp(),
    "torch.abs": torch.abs,
    "swish": lambda x: x * torch.sigmoid(x),
    "h-swish": lambda x: x * F.relu6(x + 3) / 6,
    "1 - x": lambda x: 1 - x,
    "-x": lambda x: -x,
    "x ** 2": lambda x: 0.5 * x**2,
    "x by its width": lambda x: x * x.shape[1] ** -0.5,
    "x += 1": lambda x: x.add_(1),
    "maximum": lambda x: torch.maximum(x, 0.3 * x),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "unit length": lambda x: F.normalize(x, dim=1),
}


@block(kind=("ReLU", *list(_ACTIVATION_MODULES), *_ACTIVATION_FUNCTIONS))
class Activation(nn.Module):
    def __init__(self, x: Tensor, kind: str) -> None:
        super().__init__()
        modules = _ACTIVATION_MODULES
        self.call = modules[kind](x.shape[1]) if kind in modules else _ACTIVATION_FUNCTIONS[kind]

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


# Image sizes

_POOLS: dict[str, Callable[[], Any]] = {
    "max": lambda: nn.MaxPool2d(2),
    "max, overlapping": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "avg": lambda: nn.AvgPool2d(2),
    "avg, same size": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "adaptive avg": lambda: nn.AdaptiveAvgPool2d(4),
    "adaptive max": lambda: nn.AdaptiveMaxPool2d((3, 4)),
    "F.max": lambda: partial(F.max_pool2d, kernel_size=2),
    "F.avg": lambda: lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "F.adaptive avg": lambda: partial(F.adaptive_avg_pool2d, output_size=3),
    "Lp": lambda: nn.LPPool2d(2, 2),
    "every second pixel": lambda: lambda x: x[:, :, ::2, ::2],
    "without a border": lambda: lambda x: x[..., 1:, :-1],
}


@block(kind=tuple(_POOLS))
class Pool(nn.Module):
    def __init__(self, x: Tensor, kind: str) -> None:
        super().__init__()
        self.call = _POOLS[kind]()

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


_RESIZES: dict[str, Callable[[], Any]] = {
    "Upsample": lambda: nn.Upsample(scale_factor=2),
    "Upsample bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    "F.interpolate": lambda: partial(F.interpolate, scale_factor=1.5),
    "F.interpolate to a size": lambda: partial(F.interpolate, size=(6, 5), mode="bilinear"),
    "F.interpolate by its size": lambda: (
        lambda x: F.interpolate(x, size=(x.shape[2] + 2, x.size(3)))
    ),
    "ZeroPad2d": lambda: nn.ZeroPad2d(1),
    "ReflectionPad2d": lambda: nn.ReflectionPad2d((1, 0, 0, 1)),
    "F.pad": lambda: lambda x: F.pad(x, (0, 1, 0, 1)),
    "F.pad with one": lambda: lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
    "F.pad reflect": lambda: lambda x: F.pad(x, [1, 1, 1, 1], mode="reflect"),
    "F.pad that crops": lambda: lambda x: F.pad(x, (1, -1, 0, 0)),
}


@block(kind=tuple(_RESIZES))
class Resize(nn.Module):
    def __init__(self, x: Tensor, kind: str) -> None:
        super().__init__()
        self.call = _RESIZES[kind]()

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


# Dropouts


class Drop(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        layers = {
            "Dropout": lambda: nn.Dropout(0.3), "Dropout2d": lambda: nn.Dropout2d(0.3),
            "StochasticDepth": lambda: StochasticDepth(0.3, "row"),
        }  # fmt: skip
        self.layer = layers.get(kind, nn.Identity)()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "F.dropout":
            return F.dropout(x, 0.3, training=self.training)
        if self.kind == "stochastic_depth":
            return stochastic_depth(x, 0.3, "row", training=self.training)
        return self.layer(x)


DROPS = ("none", "Dropout", "StochasticDepth", "Dropout2d", "F.dropout")


# Layers called twice


@block(between=("ReLU", "norm", "nothing"), kind=("conv", "depthwise", "grouped", "linear"))
class Shared(nn.Module):
    """One layer called twice."""

    def __init__(self, x: Tensor, between: str, kind: str) -> None:
        super().__init__()
        width = x.shape[1]
        groups = {"depthwise": width, "grouped": largest_divisor(width, 4, 2)}.get(kind, 1)
        self.between, self.kind = between, kind
        self.layer: nn.Module = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        if kind == "linear":
            self.layer = nn.Linear(width, width)
        self.norm = nn.BatchNorm2d(width)

    def _once(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.layer(x)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self._once(x)
            if self.between == "norm":
                x = self.norm(x)
            elif self.between == "ReLU":
                x = F.relu(x)
        return x
