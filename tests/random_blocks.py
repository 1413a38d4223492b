"""The repertoire of random_graphs.py: what people write in a forward, one class an idiom.

A block is built for the tensor that it will be given and adapts itself to it (a width that cannot
be halved gets a convolution in front), so that any sequence of blocks is a network. Options are
declared with their choices, the plainest first; how a thing is *written* (module, function,
method, in place, sizes read or in numbers) is an option like any other.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import StochasticDepth, stochastic_depth

Description = tuple[str, dict[str, Any]]

LARGEST_WIDTH, LARGEST_IMAGE, SMALLEST_IMAGE = 24, 20, 3


@dataclass(frozen=True)
class Nested:
    """An option that holds so many blocks."""

    least: int
    most: int


@dataclass(frozen=True)
class Branches:
    """An option that holds so many sequences of blocks."""

    least: int
    most: int


REPERTOIRE: dict[str, type[nn.Module]] = {}
HEADS: dict[str, type[nn.Module]] = {}


def block(into: dict[str, type[nn.Module]] = REPERTOIRE, **choices: Any) -> Callable[[Any], Any]:
    """Register a class under its own name, with the choices of each of its options."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        kind.choices = choices
        into[re.sub(r"(?<=.)([A-Z])", r"_\1", kind.__name__).lower()] = kind
        return kind

    return register


def choices_of(name: str) -> dict[str, Any]:
    return {**REPERTOIRE, **HEADS}[name].choices


def make(description: Description, x: Tensor) -> nn.Module:
    """The block of a description, for inputs like x; options left out have their first choice."""
    name, given = description
    plainest = {
        option: [[]] * choice.least if isinstance(choice, Branches) else []
        if isinstance(choice, Nested) else choice[0]
        for option, choice in choices_of(name).items()
    }  # fmt: skip
    return {**REPERTOIRE, **HEADS}[name](x, **{**plainest, **given})


def output_of(module: nn.Module, x: Tensor) -> Tensor:
    """What a block gives in evaluation mode, for building the next one."""
    with torch.no_grad():
        return module.eval()(x.clone())


def chain(x: Tensor, descriptions: list[Description]) -> tuple[nn.Sequential, Tensor]:
    """Blocks one after the other, kept within bounds, and what they give."""
    layers = nn.Sequential()
    for description in descriptions:
        layer: nn.Module | None = make(description, x)
        while layer is not None:
            layers.append(layer)
            x = output_of(layer, x)
            layer = _back_in_bounds(x)
    return layers, x


def _back_in_bounds(x: Tensor) -> nn.Module | None:
    if x.shape[1] > LARGEST_WIDTH:
        return nn.Conv2d(x.shape[1], 8, 1)
    if max(x.shape[2:]) > LARGEST_IMAGE:
        return nn.AvgPool2d(tuple(2 if size > LARGEST_IMAGE else 1 for size in x.shape[2:]))
    if min(x.shape[2:]) < SMALLEST_IMAGE:
        return nn.Upsample(
            scale_factor=tuple(2.0 if size < SMALLEST_IMAGE else 1.0 for size in x.shape[2:])
        )
    return None if x.is_contiguous() else _Contiguous()


class _Contiguous(nn.Module):
    """What people add when a later view() complains."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


def to_multiple(x: Tensor, of: int) -> tuple[nn.Module, int]:
    """A layer that makes the width a multiple, and that width."""
    width = x.shape[1]
    wanted = max(1, round(width / of)) * of
    return (nn.Identity() if wanted == width else nn.Conv2d(width, wanted, 1)), wanted


def largest_divisor(width: int, *candidates: int) -> int:
    return next((c for c in candidates if width % c == 0), 1)


def like(y: Tensor, x: Tensor) -> Tensor:
    """As decoders write it; traced only where build time showed that sizes differ."""
    return F.interpolate(y, size=x.shape[-2:])


# Layers


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


# Sums


class _Drop(nn.Module):
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

_ADDITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x + y": lambda x, y: x + y,
    "y + x": lambda x, y: y + x,
    "y += x": lambda x, y: _in_place(y, x),
    "torch.add": torch.add,
    "y.add(x)": lambda x, y: y.add(x),
    "y.add_(x)": lambda x, y: y.add_(x),
    "y.mul(0.5).add_(x)": lambda x, y: y.mul(0.5).add_(x),
    "torch.add alpha": lambda x, y: torch.add(x, y, alpha=0.5),
    "x - y": lambda x, y: x - y,
}


def _in_place(y: Tensor, x: Tensor) -> Tensor:
    y += x
    return y


@block(
    body=Nested(0, 3),
    addition=tuple(_ADDITIONS),
    shortcut=("identity", "projection"),
    scale=("none", "parameter", "parameter, flat", "number"),
    drop=DROPS,
    before=("none", "norm and ReLU", "norm"),
    after=("none", "ReLU", "ReLU in place", "F.relu in place"),
)
class Residual(nn.Module):
    """Fits the branch to the shortcut, or the shortcut to the branch where sizes part."""

    def __init__(self, x: Tensor, body: list, addition: str, shortcut: str, **options: str) -> None:
        super().__init__()
        width = x.shape[1]
        self.options = options
        self.add = _ADDITIONS[addition]
        self.norm = nn.BatchNorm2d(width) if options["before"] != "none" else None
        self.branch, y = chain(x, body)
        self.resized = y.shape[2:] != x.shape[2:]
        after = y.shape[1] if shortcut == "projection" else width
        self.fit = nn.Conv2d(y.shape[1], after, 3, padding=1)
        project = shortcut == "projection" or self.resized
        self.project = nn.Conv2d(width, after, 1) if project else None
        if options["scale"] == "parameter":
            self.gamma = nn.Parameter(torch.rand(after, 1, 1) + 0.5)
        elif options["scale"] == "parameter, flat":
            self.gamma = nn.Parameter(torch.rand(after) + 0.5)
        self.drop = _Drop(options["drop"])
        self.relu = nn.ReLU(inplace=options["after"] == "ReLU in place")

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.norm is not None:
            y = self.norm(x)
            y = F.relu(y) if self.options["before"] == "norm and ReLU" else y
        y = self.drop(self._scaled(self.fit(self.branch(y))))
        if self.resized:
            x = like(x, y)
        if self.project is not None:
            x = self.project(x)
        x = self.add(x, y)
        if self.options["after"] == "F.relu in place":
            return F.relu(x, inplace=True)
        return x if self.options["after"] == "none" else self.relu(x)

    def _scaled(self, y: Tensor) -> Tensor:
        scale = self.options["scale"]
        if scale == "parameter":
            return self.gamma * y
        if scale == "parameter, flat":
            return y * self.gamma.view(1, -1, 1, 1)
        return y * 0.7 if scale == "number" else y


_PADDED_SHORTCUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "F.pad both": lambda x, n: F.pad(x, (0, 0, 0, 0, n // 2, n - n // 2)),
    "F.pad behind": lambda x, n: F.pad(x, [0, 0, 0, 0, 0, n], "constant", 0),
    "new_zeros": lambda x, n: torch.cat([x, x.new_zeros(x.size(0), n, x.size(2), x.size(3))], 1),
    "zeros_like": lambda x, n: torch.cat((x, torch.zeros_like(x[:, :n])), dim=1),
    "times 0": lambda x, n: torch.cat([x, x[:, :n] * 0], 1),
}


@block(
    style=("basic", "bottleneck", "inverted", "pre-activation"),
    stride=(1, 2),
    widen=(False, True),
    shortcut=("projection", *_PADDED_SHORTCUTS),
    excite=(False, True),
    drop=DROPS,
    in_place=(True, False),
)
class Block(nn.Module):
    """The blocks of ResNet, ResNet v2 and MobileNetV2 as they are written."""

    def __init__(
        self, x: Tensor, style: str, stride: int, widen: bool, shortcut: str, excite: bool,
        drop: str, in_place: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        width = x.shape[1]
        after = width + min(4, width) if widen else width
        stride = 1 if min(x.shape[2:]) < 6 else stride
        self.style, self.stride, self.more = style, stride, after - width
        relu = partial(nn.ReLU, inplace=in_place)
        inner = {"basic": after, "pre-activation": after, "inverted": 2 * width}.get(style, 4)
        layers: list[nn.Module] = []
        if style == "pre-activation":
            layers += [nn.BatchNorm2d(width), relu()]
        if style in ("basic", "pre-activation"):
            layers += [nn.Conv2d(width, inner, 3, stride, 1, bias=False)]
            layers += [nn.BatchNorm2d(inner), relu(), nn.Conv2d(inner, after, 3, padding=1)]
        else:
            groups = inner if style == "inverted" else 1
            layers += [nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), relu()]
            layers += [nn.Conv2d(inner, inner, 3, stride, 1, groups=groups), relu()]
            if excite:
                layers += [SqueezeExcite(torch.zeros(2, inner, 4, 4))]
            layers += [nn.Conv2d(inner, after, 1, bias=False)]
        if style != "pre-activation":
            layers += [nn.BatchNorm2d(after)]
        self.branch = nn.Sequential(*layers, _Drop(drop))
        self.padded = _PADDED_SHORTCUTS.get(shortcut)
        changes = stride == 2 or after != width
        self.project = (
            nn.Sequential(nn.Conv2d(width, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            if changes and self.padded is None else None
        )  # fmt: skip
        self.relu = relu() if style in ("basic", "bottleneck") else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.branch(x)
        if self.project is not None:
            identity = self.project(x)
        elif self.padded is not None:
            identity = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
            if self.more:
                identity = self.padded(identity, self.more)
        out += identity
        return self.relu(out)


@block(
    branches=Branches(2, 3),
    written=("a + b", "sum()", "stack", "+="),
)
class Sum(nn.Module):
    def __init__(self, x: Tensor, branches: list, written: str) -> None:
        super().__init__()
        self.written = written
        self.branches = nn.ModuleList()
        for body in branches:
            branch, y = chain(x, body)
            self.branches.append(
                nn.Sequential(branch, nn.Conv2d(y.shape[1], x.shape[1], 1), _Like(y, x))
            )

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        if self.written == "sum()":
            return sum(parts)
        if self.written == "stack":
            return torch.stack(parts).sum(0)
        result = parts[0]
        for part in parts[1:]:
            if self.written == "+=":
                result += part
            else:
                result = result + part
        return result


class _Like(nn.Module):
    """Back to the image size that the block was built for, where that was lost."""

    def __init__(self, y: Tensor, x: Tensor) -> None:
        super().__init__()
        self.size = None if y.shape[2:] == x.shape[2:] else tuple(x.shape[2:])

    def forward(self, y: Tensor) -> Tensor:
        return y if self.size is None else F.interpolate(y, size=self.size)


# Products


@block(
    layers=("Conv2d", "Linear"),
    pool=("AdaptiveAvgPool2d", "mean", "F.adaptive_avg_pool2d"),
    gate=("sigmoid", "Hardsigmoid", "F.hardsigmoid", "1 + tanh"),
    product=("x * s", "s * x", "expand_as", "torch.mul", "x *= s", "x.mul_(s)"),
    sizes=("read", "x.shape", "written"),
)
class SqueezeExcite(nn.Module):
    def __init__(self, x: Tensor, **options: str) -> None:
        super().__init__()
        self.options = {**{k: v[0] for k, v in choices_of("squeeze_excite").items()}, **options}
        self.width = x.shape[1]
        self.linear = self.options["layers"] == "Linear"
        layer = nn.Linear if self.linear else partial(nn.Conv2d, kernel_size=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = layer(self.width, 4), layer(4, self.width)
        self.hard = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        pools = {
            "AdaptiveAvgPool2d": self.pool,
            "mean": lambda x: x.mean((2, 3), keepdim=True),
            "F.adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
        }
        gates = {
            "sigmoid": torch.sigmoid,
            "Hardsigmoid": self.hard,
            "F.hardsigmoid": F.hardsigmoid,
            "1 + tanh": lambda s: 1 + s.tanh(),
        }
        s = pools[self.options["pool"]](x)
        s = self._through_linear(x, s) if self.linear else self.up(F.relu(self.down(s)))
        return self._product(x, gates[self.options["gate"]](s))

    def _through_linear(self, x: Tensor, s: Tensor) -> Tensor:
        if self.options["sizes"] == "read":
            b, c, _, _ = x.size()
            return self.up(F.relu(self.down(s.view(b, c)))).view(b, c, 1, 1)
        if self.options["sizes"] == "x.shape":
            s = self.up(F.relu(self.down(s.flatten(1))))
            return s.reshape(x.shape[0], x.shape[1], 1, 1)
        s = s.view(-1, self.width)
        return self.up(F.relu(self.down(s))).view(-1, self.width, 1, 1)

    def _product(self, x: Tensor, s: Tensor) -> Tensor:
        kind = self.options["product"]
        if kind == "x *= s":
            x *= s
            return x
        products = {
            "x * s": lambda: x * s,
            "s * x": lambda: s * x,
            "expand_as": lambda: x * s.expand_as(x),
            "torch.mul": lambda: torch.mul(x, s),
            "x.mul_(s)": lambda: x.mul_(s),
        }
        return products[kind]()


@block(
    factor=("one channel", "all channels", "parameter", "parameter (c,)", "mean over channels",
            "buffer", "positions", "softmax over channels", "softmax over space"),
    bias=(False, True),
)  # fmt: skip
class Product(nn.Module):
    """A factor for each pixel, each channel, or both."""

    def __init__(self, x: Tensor, factor: str, bias: bool) -> None:
        super().__init__()
        width = x.shape[1]
        self.factor = factor
        self.one, self.all = nn.Conv2d(width, 1, 3, padding=1), nn.Conv2d(width, width, 1)
        self.scale = nn.Parameter(torch.rand(1, width, 1, 1) + 0.5)
        self.flat = nn.Parameter(torch.rand(width) + 0.5)
        self.register_buffer("constant", torch.rand(width, 1, 1) + 0.5)
        self.places = nn.Parameter(torch.rand(1, width, *x.shape[2:]))
        self.offset = nn.Parameter(torch.rand(1, width, 1, 1)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        factors = {
            "one channel": lambda: torch.sigmoid(self.one(x)),
            "all channels": lambda: torch.tanh(self.all(x)),
            "parameter": lambda: self.scale,
            "parameter (c,)": lambda: self.flat[None, :, None, None],
            "mean over channels": lambda: torch.sigmoid(x.mean(1, keepdim=True)),
            "buffer": lambda: self.constant,
            "positions": lambda: self.places,
            "softmax over channels": lambda: self.all(x).softmax(dim=1),
            "softmax over space": lambda: F.softmax(self.one(x).flatten(2), -1).view(
                x.shape[0], 1, x.shape[2], x.shape[3]
            ),
        }
        x = x * factors[self.factor]()
        return x if self.offset is None else x + self.offset


# Concatenations


@block(
    branches=Branches(2, 3),
    written=("list", "tuple", "dim=-3", "concat"),
    twice=(False, True),
    shortcut=(False, True),
)
class Concat(nn.Module):
    """Inception-like; an operand may occur twice, the input itself may be one."""

    def __init__(
        self, x: Tensor, branches: list, written: str, twice: bool, shortcut: bool
    ) -> None:
        super().__init__()
        self.written, self.twice, self.shortcut = written, twice, shortcut
        self.branches = nn.ModuleList()
        for body in branches:
            branch, y = chain(x, body)
            self.branches.append(nn.Sequential(branch, nn.Conv2d(y.shape[1], 4, 1), _Like(y, x)))

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        parts += [x] * self.shortcut + [parts[0]] * self.twice
        if self.written == "tuple":
            return torch.cat(tuple(parts), dim=1)
        if self.written == "dim=-3":
            return torch.cat(parts, -3)
        return torch.concat(parts, 1) if self.written == "concat" else torch.cat(parts, 1)


@block(
    layers=(2, 3),
    norm=(True, False),
    written=("features", "x = cat"),
)
class Dense(nn.Module):
    def __init__(self, x: Tensor, layers: int, norm: bool, written: str) -> None:
        super().__init__()
        self.written = written
        self.layers = nn.ModuleList()
        for place in range(layers):
            width = x.shape[1] + 3 * place
            before = [nn.BatchNorm2d(width), nn.ReLU(inplace=True)] if norm else [nn.ReLU()]
            self.layers.append(nn.Sequential(*before, nn.Conv2d(width, 3, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        if self.written == "x = cat":
            for layer in self.layers:
                x = torch.cat([x, layer(x)], 1)
            return x
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


# Parts of channels

_PARTS: dict[str, Callable[[Tensor, int], Any]] = {
    "chunk": lambda x, _: x.chunk(2, 1),
    "torch.chunk": lambda x, _: torch.chunk(x, 2, dim=1),
    "split": lambda x, w: x.split(w // 2, 1),
    "split read": lambda x, _: x.split(x.shape[1] // 2, dim=1),
    "torch.split sizes": lambda x, w: torch.split(x, [w // 2, w - w // 2], dim=1),
    "split unequal": lambda x, w: x.split([w - 2, 2], 1),
    "tensor_split": lambda x, _: x.tensor_split(2, 1),
    "slices": lambda x, w: (x[:, : w // 2], x[:, w // 2 :]),
    "slices read": lambda x, _: (x[:, : x.shape[1] // 2], x[:, x.size(1) // 2 :, :, :]),
    "slices from the end": lambda x, _: (x[:, :-2], x[:, -2:, ...]),
    "slices that overlap": lambda x, w: (x[:, : w - 1], x[:, 1:]),
    "narrow": lambda x, w: (x.narrow(1, 0, w // 2), x.narrow(1, w // 2, w // 2)),
    "every second": lambda x, _: (x[:, ::2], x[:, 1::2]),
    "unbind": lambda x, w: x.view(x.size(0), 2, w // 2, x.size(2), x.size(3)).unbind(1),
    "unflatten": lambda x, _: x.unflatten(1, (2, -1)).unbind(1),
    "index": lambda x, w: (x[:, [2, 0, 1]], x[:, 3:]),
}


@block(
    parts=tuple(_PARTS),
    body=Nested(0, 2),
    use=("cat", "cat swapped", "cat both", "product", "sum", "first only", "glu"),
)
class Parts(nn.Module):
    """The channels in two parts, of which one or both go through layers of their own."""

    def __init__(self, x: Tensor, parts: str, body: list, use: str) -> None:
        super().__init__()
        self.fit, self.width = (
            (nn.Identity(), x.shape[1])
            if x.shape[1] >= 4 and x.shape[1] % 2 == 0 else (nn.Conv2d(x.shape[1], 8, 1), 8)
        )  # fmt: skip
        self.use, self.parts = use, _PARTS[parts]
        with torch.no_grad():
            first, second = self.parts(self.fit(x), self.width)
        self.branch, y = chain(first.clone(), body)
        self.other = nn.Conv2d(second.shape[1], second.shape[1], 3, padding=1)
        same = use in ("product", "sum")
        self.last = nn.Conv2d(y.shape[1], second.shape[1], 1) if same else nn.Identity()
        self.like = _Like(y, first)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.parts(self.fit(x), self.width)
        if self.use == "glu":
            return F.glu(self.fit(x), 1)
        if self.use == "cat both":
            second = self.other(second)
        first = self.like(self.last(self.branch(first)))
        uses = {
            "cat": lambda: torch.cat((first, second), 1),
            "cat both": lambda: torch.cat([first, second], dim=1),
            "cat swapped": lambda: torch.cat([second, first], 1),
            "product": lambda: torch.sigmoid(first) * second,
            "sum": lambda: first + second,
            "first only": lambda: first,
        }
        return uses[self.use]()


def _shuffle_read(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.size()
    x = x.view(b, groups, c // groups, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(b, -1, h, w)


def _shuffle_permuted(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, groups, torch.div(c, groups, rounding_mode="floor"), h, w)
    return x.permute(0, 2, 1, 3, 4).reshape(n, c, h, w)


_SHUFFLES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "read": lambda x, groups, _: _shuffle_read(x, groups),
    "written": lambda x, groups, c: x.view(x.size(0), groups, c // groups, x.size(2), x.size(3))
    .transpose(1, 2).reshape(x.size(0), c, x.size(2), x.size(3)),
    "flatten": lambda x, groups, _: x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2),
    "permuted": lambda x, groups, _: _shuffle_permuted(x, groups),
    "function": lambda x, groups, _: F.channel_shuffle(x, groups),
}  # fmt: skip


@block(groups=(2, 4), written=(*_SHUFFLES, "module"))
class Shuffle(nn.Module):
    def __init__(self, x: Tensor, groups: int, written: str) -> None:
        super().__init__()
        self.fit, self.width = to_multiple(x, groups)
        self.groups = groups
        self.shuffle = nn.ChannelShuffle(groups) if written == "module" else None
        self.function = _SHUFFLES.get(written)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        return self.function(x, self.groups, self.width) if self.function else self.shuffle(x)


@block(
    written=("PixelShuffle", "F.pixel_shuffle", "PixelUnshuffle", "F.pixel_unshuffle", "view"),
)
class Pixels(nn.Module):
    def __init__(self, x: Tensor, written: str) -> None:
        super().__init__()
        self.written = written
        up = "un" not in written.lower()
        self.fit = to_multiple(x, 4)[0] if up else nn.AdaptiveAvgPool2d(6)
        self.shuffle = nn.PixelShuffle(2) if up else nn.PixelUnshuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        if self.written == "F.pixel_shuffle":
            return F.pixel_shuffle(x, 2)
        if self.written == "F.pixel_unshuffle":
            return F.pixel_unshuffle(x, 2)
        if self.written == "view":  # pixel shuffle by hand
            b, c, h, w = x.shape
            x = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
            return x.reshape(b, c // 4, 2 * h, 2 * w)
        return self.shuffle(x)


@block(
    amount=("behind", "before", "both"),
    written=("F.pad", "new_zeros", "zeros_like", "constant one"),
)
class PadChannels(nn.Module):
    def __init__(self, x: Tensor, amount: str, written: str) -> None:
        super().__init__()
        self.written = written
        self.before, self.behind = {"behind": (0, 3), "before": (2, 0), "both": (2, 2)}[amount]

    def forward(self, x: Tensor) -> Tensor:
        if self.written in ("F.pad", "constant one"):
            value = 1.0 if self.written == "constant one" else 0.0
            return F.pad(x, (0, 0, 0, 0, self.before, self.behind), value=value)
        return torch.cat([*self._zeros(x, self.before), x, *self._zeros(x, self.behind)], 1)

    def _zeros(self, x: Tensor, count: int) -> list[Tensor]:
        if not count:
            return []
        if self.written == "new_zeros":
            return [x.new_zeros((x.shape[0], count, *x.shape[2:]))]
        return [torch.zeros_like(x[:, :1]).repeat(1, count, 1, 1)]


# Other axes


@block(
    written=("permute", "flatten", "reshape", "movedim"),
    norm=(False, True),
    wide=(True, False),
    residual=(False, True),
    function=(False, True),
)
class Tokens(nn.Module):
    """Linear layers on channels that lie last, as in ConvNeXt and mixers."""

    def __init__(
        self, x: Tensor, written: str, norm: bool, wide: bool, residual: bool, function: bool
    ) -> None:
        super().__init__()
        width = x.shape[1]
        inner = 2 * width if wide else max(1, width - 1)
        self.written, self.residual, self.function = written, residual, function
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.weight = nn.Parameter(torch.randn(width, inner) / inner**0.5)

    def _last(self, x: Tensor) -> Tensor:
        if self.written == "permute":
            return x.permute(0, 2, 3, 1)
        if self.written == "movedim":
            return torch.movedim(x, 1, -1)
        if self.written == "flatten":
            return x.flatten(2).transpose(1, 2)
        return x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)

    def _first(self, tokens: Tensor, x: Tensor) -> Tensor:
        if self.written == "permute":
            return tokens.permute(0, 3, 1, 2)
        if self.written == "movedim":
            return tokens.movedim(-1, 1)
        b, _, h, w = x.shape
        return tokens.transpose(1, 2).reshape(b, -1, h, w)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.gelu(self.up(self.norm(self._last(x))))
        tokens = F.linear(tokens, self.weight) if self.function else self.down(tokens)
        y = self._first(tokens, x)
        return x + y if self.residual else y


@block(written=("ResNeSt", "split", "view"), sizes=("read", "written"))
class SplitAttention(nn.Module):
    RADIX = 2

    def __init__(self, x: Tensor, written: str, sizes: str) -> None:
        super().__init__()
        self.written, self.sizes = written, sizes
        self.fit, self.width = to_multiple(x, 2)
        self.conv = nn.Conv2d(
            self.width, self.width * self.RADIX, 3, padding=1, groups=self.RADIX, bias=False
        )
        self.norm = nn.BatchNorm2d(self.width * self.RADIX)
        self.down = nn.Conv2d(self.width, 4, 1)
        self.up = nn.Conv2d(4, self.width * self.RADIX, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(self.fit(x))))
        if self.written == "split":
            return self._split(x)
        b, c, h, w = x.shape
        width = c // self.RADIX if self.sizes == "read" else self.width
        x = x.view(b, self.RADIX, width, h, w)
        pooled = x.sum(dim=1).mean((2, 3), keepdim=True)
        attention = self.up(F.relu(self.down(pooled)))
        if self.written == "ResNeSt":
            attention = attention.view(b, 1, self.RADIX, -1).transpose(1, 2)
            attention = F.softmax(attention, dim=1).reshape(b, -1, 1, 1)
            attention = attention.view(b, self.RADIX, width, 1, 1)
        else:
            attention = attention.view(b, self.RADIX, width, 1, 1).softmax(1)
        return (x * attention).sum(dim=1).contiguous()

    def _split(self, x: Tensor) -> Tensor:
        width = x.shape[1] // self.RADIX if self.sizes == "read" else self.width
        parts = torch.split(x, width, dim=1)
        pooled = F.adaptive_avg_pool2d(sum(parts), 1)
        attention = self.up(F.relu(self.down(pooled)))
        attention = attention.view(-1, self.RADIX, width).softmax(1).reshape(-1, 2 * width, 1, 1)
        factors = torch.split(attention, width, dim=1)
        return sum(factor * part for factor, part in zip(factors, parts, strict=True))


@block(written=("stack", "view", "separate"))
class SelectiveKernel(nn.Module):
    def __init__(self, x: Tensor, written: str) -> None:
        super().__init__()
        width = x.shape[1]
        self.written = written
        self.small = nn.Conv2d(width, width, 3, padding=1)
        self.large = nn.Conv2d(width, width, 3, padding=2, dilation=2)
        self.down = nn.Conv2d(width, 4, 1)
        self.up = nn.Conv2d(4, 2 * width, 1)
        self.first, self.second = nn.Conv2d(4, width, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([F.relu(self.small(x)), F.relu(self.large(x))], dim=1)
        z = F.relu(self.down(both.sum(1).mean((2, 3), keepdim=True)))
        if self.written == "separate":
            attention = torch.stack([self.first(z), self.second(z)], 1)
        else:
            b, _, c, _, _ = both.shape
            width = c if self.written == "view" else -1
            attention = self.up(z).view(b, 2, width, 1, 1)
        return torch.sum(both * torch.softmax(attention, dim=1), dim=1)


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


# Heads

_GLOBAL_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 1), 1),
    "mean": lambda x: x.mean([2, 3]),
    "mean, negative": lambda x: x.mean((-2, -1)),
    "view": lambda x: F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), -1),
    "squeeze": lambda x: F.adaptive_max_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "index": lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0],
    "tokens": lambda x: x.flatten(2).mean(-1),
    "avg_pool of its size": lambda x: F.avg_pool2d(x, x.size()[2:]).flatten(1),
    "sum": lambda x: x.sum((2, 3)) * 0.1,
    "amax": lambda x: x.amax((2, 3)),
    "max": lambda x: x.flatten(2).max(-1)[0],
}


@block(
    HEADS, pool=tuple(_GLOBAL_POOLS), hidden=("none", "ReLU", "BatchNorm1d", "LayerNorm"),
    drop=("none", "Dropout", "F.dropout"), final=("none", "softmax", "log_softmax"),
)  # fmt: skip
class PoolLinear(nn.Module):
    def __init__(self, x: Tensor, pool: str, hidden: str, drop: str, final: str) -> None:
        super().__init__()
        width = x.shape[1]
        self.pool, self.final = _GLOBAL_POOLS[pool], final
        norm = {"BatchNorm1d": nn.BatchNorm1d, "LayerNorm": nn.LayerNorm}.get(hidden)
        self.hidden = nn.Sequential(
            *[nn.Linear(width, 6)] * (hidden != "none"), *([norm(6)] if norm else []), nn.ReLU()
        )
        self.drop = _Drop(drop)
        self.last = nn.Linear(width if hidden == "none" else 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.drop(self.hidden(self.pool(x))))
        return x if self.final == "none" else getattr(F, self.final)(x, dim=1)


_FLATTENS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "torch.flatten": lambda x, _: torch.flatten(x, 1),
    "x.flatten": lambda x, _: x.flatten(1),
    "read": lambda x, _: x.view(x.size(0), -1),
    "reshape": lambda x, _: x.reshape(x.shape[0], -1),
    "written": lambda x, n: x.view(-1, n),
    "both": lambda x, n: x.reshape(x.shape[0], n),
    "channels last": lambda x, _: x.permute(0, 2, 3, 1).flatten(1),
    "product of sizes": lambda x, _: x.view(-1, x.size(1) * x.size(2) * x.size(3)),
    "start_dim": lambda x, _: torch.flatten(x, start_dim=-3),
}


@block(HEADS, flatten=(*_FLATTENS, "module"), hidden=(False, True))
class FlattenLinear(nn.Module):
    def __init__(self, x: Tensor, flatten: str, hidden: bool) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((2, 3))
        self.count = x.shape[1] * 6
        self.flat = nn.Flatten()
        self.flatten = _FLATTENS.get(flatten)
        width = 7 if hidden else self.count
        self.hidden = nn.Linear(self.count, 7) if hidden else nn.Identity()
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.pool(x))
        x = self.flatten(x, self.count) if self.flatten else self.flat(x)
        return self.last(F.relu(self.hidden(x)))


@block(HEADS, whole=(False, True))
class FlattenImage(nn.Module):
    """As LeNet does: the image's own size is in the first linear layer."""

    def __init__(self, x: Tensor, whole: bool) -> None:
        super().__init__()
        self.pool = nn.Identity() if whole else nn.MaxPool2d(2)
        pooled = output_of(self.pool, x)
        self.last = nn.Linear(pooled[0].numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        return self.last(x.view(x.shape[0], -1))


@block(HEADS, kernel=(1, 3), upsample=(False, True))
class DenseMap(nn.Module):
    """A class for each pixel."""

    def __init__(self, x: Tensor, kernel: int, upsample: bool) -> None:
        super().__init__()
        self.last = nn.Conv2d(x.shape[1], 3, kernel, padding=kernel // 2)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(x)
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return x


@block(HEADS, kind=("tuple", "dict", "list", "features too"), deep=(False, True))
class Several(nn.Module):
    def __init__(self, x: Tensor, kind: str, deep: bool) -> None:
        super().__init__()
        width = x.shape[1]
        self.kind = kind
        self.trunk = nn.Conv2d(width, width, 3, padding=1) if deep else nn.Identity()
        self.classes, self.boxes = nn.Linear(width, 3), nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Any:
        trunk = F.relu(self.trunk(x))
        classes, boxes = self.classes(trunk.mean((2, 3))), self.boxes(x)
        if self.kind == "dict":
            return {"classes": classes, "boxes": boxes}
        if self.kind == "features too":
            return classes, {"boxes": boxes, "features": [trunk]}
        return [classes, boxes] if self.kind == "list" else (classes, boxes)
