"""What is multiplied by something that a layer computes or a parameter holds: attention, scales."""

from functools import partial

import torch
import torch.nn.functional as F
from random_descriptions import block, choices_of
from random_fitting import to_multiple
from torch import Tensor, nn


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
