"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597): an encoder, a decoder, and skips between them.

As in the relaxation's experiments (paper B): two 3x3 convolutions a level, max-pooling downwards,
2x2 transposed convolutions upwards, concatenation. Convolutions are padded, so that the output has
the size of the input.
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polarprune.errors import ConfigError

_MOST_CHANNELS = 1 << 16


class UNet(nn.Module):
    """One score a class and pixel."""

    def __init__(
        self, num_classes: int = 2, *, depth: int = 4, width: int = 32, norm: bool = True
    ) -> None:
        """A U-Net of `depth` levels, `width` channels at the top and twice as many a level below.

        Args:
            norm: batch normalisation behind each 3x3 convolution; without it these have biases.

        Raises:
            ConfigError: a depth or a width below 1, or more channels than anything could hold.
        """
        super().__init__()
        if depth < 1 or width < 1:
            raise ConfigError(f"a U-Net needs a depth and a width of 1 at least: {depth}, {width}")
        if depth > _MOST_CHANNELS or width << (depth - 1) > _MOST_CHANNELS:
            raise ConfigError(
                f"a U-Net of depth {depth} and width {width} has more than {_MOST_CHANNELS:,} "
                "channels at its lowest level"
            )
        widths = [width << level for level in range(depth)]
        self.down = nn.ModuleList(
            _double(before, after, norm)
            for before, after in zip([3, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, above, 2, stride=2) for above, below in pairwise(widths)
        )
        self.merge = nn.ModuleList(_double(2 * above, above, norm) for above in widths[:-1])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h w"]:
        """Scores; height and width must be multiples of 2 to the power of (depth - 1)."""
        skips = []
        for level, down in enumerate(self.down):
            x = down(x if level == 0 else self.pool(x))
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat([skips[level], self.up[level](x)], 1))
        scores: Tensor = self.head(x)
        return scores


_NAME = re.compile(r"unet(-d(?P<depth>\d+))?(-w(?P<width>\d+))?(?P<plain>-plain)?")


def unet_of_name(name: str) -> Callable[[int], nn.Module] | None:
    """What `unet`, `unet-d5-w64-plain` stand for, by the number of classes; None for other names.

    d is the depth, w the width, plain is without normalisation.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    sizes = {key: int(found[key]) for key in ("depth", "width") if found[key] is not None}
    return partial(UNet, **sizes, norm=found["plain"] is None)


def _double(before: int, after: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers.append(nn.Conv2d(channels, after, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(after)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
