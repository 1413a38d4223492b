"""What goes several ways and meets again: in a sum, or side by side."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from random_descriptions import Branches, Nested, block, chain
from random_fitting import Like, like
from random_layers import DROPS, Drop
from random_products import SqueezeExcite
from torch import Tensor, nn

# Sums

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
        self.drop = Drop(options["drop"])
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
        self.branch = nn.Sequential(*layers, Drop(drop))
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
                nn.Sequential(branch, nn.Conv2d(y.shape[1], x.shape[1], 1), Like(y, x))
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
            self.branches.append(nn.Sequential(branch, nn.Conv2d(y.shape[1], 4, 1), Like(y, x)))

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
