"""What a network ends with: classes, a map of them, or several outputs in any nest."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from random_descriptions import block, output_of
from random_layers import Drop
from torch import Tensor, nn

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
    pool=tuple(_GLOBAL_POOLS), hidden=("none", "ReLU", "BatchNorm1d", "LayerNorm"),
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
        self.drop = Drop(drop)
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


@block(flatten=(*_FLATTENS, "module"), hidden=(False, True))
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


@block(whole=(False, True))
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


@block(kernel=(1, 3), upsample=(False, True))
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


@block(kind=("tuple", "dict", "list", "features too"), deep=(False, True))
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
