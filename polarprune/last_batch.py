"""What a certificate of a cut looks at: the last training batch, or noise where there is none."""

from typing import Any

import torch
from torch import Tensor, nn

from polarprune.gates import GatedNetwork

# They go through two networks in float64, twice each, and folded weights twice more: for a
# U-Net and four images of 512 x 512 that took two minutes on a CPU, so there it is two.
_CHECKED_IMAGES, _CHECKED_PIXELS = 32, 1 << 19


def checked(images: Tensor) -> Tensor:
    """Those of a batch (n, c, ...) that a certificate looks at; two at least, if there are."""
    pixels = max(1, images[:1, 0].numel())
    return images[: max(2, min(_CHECKED_IMAGES, _CHECKED_PIXELS // pixels))]


class LastBatch:
    """A forward hook that keeps what a certificate may look at.

    It is no method of OnePass: a copy of the gated network would copy that along.
    """

    images: Tensor | None = None

    def __call__(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep some images of a training batch."""
        if net.training:
            images = args[0] if args else next(iter(kwargs.values()))
            self.images = checked(images.detach())


def noise_like(gated: GatedNetwork) -> Tensor:
    """Two random images of the network's shape, device and dtype."""
    like = next(gated.parameters())
    generator = torch.Generator().manual_seed(0)
    shape = (2, *gated.analysis.input_shape[1:])
    return torch.randn(shape, generator=generator).to(device=like.device, dtype=like.dtype)
