"""Channels that are taken apart, moved to other places or other axes, and padded."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from random_descriptions import Nested, block, chain
from random_fitting import Like, to_multiple
from torch import Tensor, nn

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
        self.like = Like(y, first)

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


# Shuffled and padded


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
