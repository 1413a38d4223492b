"""Dynamic masks, predicted for each image from the layer before, and what of them is static.

Elkerdawy et al., "Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask
Prediction" (CVPR 2022, arXiv 2110.08232). From the authors' code: the head (pooling, softmax, one
1x1 convolution, sigmoid above one half), the target (the channels that hold a mass r of the heat
map), its binary cross-entropy for the first half of the training, joint and decoupled heads.

**Ours**: a head a gate site. A convolution inside of a block has a site of its own, so there it is
a head a convolution; a residual stream has one, for all that write and read it. The paper masks
each writer before the addition, which makes the stream dense again and saves its readers nothing; a
closed channel of ours is read by nobody, and counted so. **Ours** too is what is exported: units
that stay closed for nearly all images go, the others stay for every image.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polarprune.errors import ConfigError
from polarprune.methods.protocol import GateOutput, GateRequest, Method, Units
from polarprune.option_values import check_choice, check_share
from polarprune.phases import Phases

_MASS = 0.9
# A unit that is open for more than this share of the images stays.
_NEARLY_NEVER = 0.01
# Heads learn for this part of the search, then the network adapts to them (the authors' cooldown).
_LEARNING = 0.5
_NEVER_FIRES = 1e-5  # at r = 1: the share of the mass that is none (the authors')


class MaskHead(nn.Module):
    """Softmax of the pooled features, one linear layer (a 1x1 convolution of one pixel)."""

    blocks: Bool[Tensor, " u"]

    def __init__(self, request: GateRequest) -> None:
        """Predict for the channels of all sites that look at one tensor; blocks stay open."""
        super().__init__()
        self.head = nn.Linear(request.channels, request.units)
        self.sizes = [size for _, size in request.sites]
        of_block = [kind == "block" for kind, size in request.sites for _ in range(size)]
        self.register_buffer("blocks", torch.tensor(of_block, dtype=torch.bool), persistent=False)
        self.logits: Tensor | None = None
        nn.init.constant_(self.head.bias, 1.0)  # open at the start

    def forward(self, pooled: Float[Tensor, "n c"]) -> GateOutput:
        """1 where the sigmoid is above one half, without a gradient: the task trains no head."""
        self.logits = self.head(pooled.softmax(1))
        hard = ((self.logits > 0) | self.blocks).to(pooled.dtype)
        # A gradient of zero: heads belong to the output (DDP asks), and are not taught by it.
        values = hard + 0.0 * (self.logits - self.logits.detach())
        share = values.mean(0)
        probability = (share / (2 * _NEARLY_NEVER)).clamp_max(1.0)
        return GateOutput(values, probability, share)

    def __getstate__(self) -> dict[str, object]:
        """Without the last logits, whose autograd graph cannot be copied."""
        return {**self.__dict__, "logits": None}


class MaskPredictor(Method):
    """Dynamic by nature; r sets the cost, and no target can."""

    name = "mask-predictor"
    options = ("mass", "heads")
    thresholds = False
    senses = True
    bounded = False
    phases = Phases(search=0.1, settle=1.0)

    def __init__(self, mass: float = _MASS, heads: str = "decoupled") -> None:
        """Choose how much is kept, and whether heads change the network.

        Args:
            mass: r, the share of the heat map that the open channels hold, 0..1.
            heads: "decoupled" (heads only watch) or "joint" (their loss trains the network too).

        Raises:
            ConfigError: out of range, or neither.
        """
        check_share("--mass", mass)
        check_choice("--heads", heads, ("decoupled", "joint"))
        self.mass = mass
        self.steers = heads == "joint"
        self.heads: list[MaskHead] = []

    def make_gates(self, requests: list[GateRequest], parameter_budget: int) -> list[nn.Module]:
        """One head a tensor, with the rows of all its sites.

        Raises:
            ConfigError: there are blocks alone, for which nothing can be predicted.
        """
        if requests and not any(kind == "channel" for r in requests for kind, _ in r.sites):
            raise ConfigError(
                f"method {self.name!r} decides about channels alone, and only blocks may go; "
                "give --granularity channel or both"
            )
        self.heads = [MaskHead(request) for request in requests]
        return list(self.heads)

    def loss(
        self, units: Units, ratio: Float[Tensor, ""], target: float, progress: float
    ) -> Float[Tensor, ""]:
        """Mean over sites of the sum over channels of the binary cross-entropy (the authors')."""
        if progress >= _LEARNING:
            return torch.zeros_like(ratio)
        losses = []
        for head, heat in zip(self.heads, units.heat, strict=True):
            assert head.logits is not None
            for logits, strength in zip(
                torch.split(head.logits, head.sizes, 1),
                torch.split(heat, head.sizes, 1),
                strict=True,
            ):
                known = _known(strength)
                if known.any():
                    heavy = heavy_channels(strength[:, known], self.mass)
                    losses.append(_entropy(logits[:, known], heavy.to(logits.dtype)))
        return torch.stack(losses).mean() if losses else torch.zeros_like(ratio)

    def forecast(self, units: Units) -> Float[Tensor, " g"]:
        """How often each channel belongs to the mass by the network as it is (MACs from r)."""
        found = []
        for head, heat in zip(self.heads, units.heat, strict=True):
            for strength in torch.split(heat, head.sizes, 1):
                known = _known(strength)
                share = strength.new_ones(strength.shape[1])
                if known.any():
                    share[known] = heavy_channels(strength[:, known], self.mass).float().mean(0)
                found.append(share)
        return torch.cat(found)


def _known(strength: Float[Tensor, "n c"]) -> Bool[Tensor, " c"]:
    """Of which units the heat was seen; of blocks, and of what has been cut out, there is none."""
    return (strength >= 0).all(0) & (len(strength) > 0)


def _entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return each.mean(0).sum()


def heavy_channels(strength: Float[Tensor, "n c"], mass: float) -> Bool[Tensor, "n c"]:
    """The channels that, strongest first, together stay below a mass r of the image's heat map.

    With q = a / sum(a) sorted downwards and C its cumulative sum, k is the first place (from 0)
    with C > r and the k strongest are kept: the one that crosses r is dropped. At r = 1 all that
    fire (paper C's code, get_gt_mask_ratio).
    """
    share = strength / strength.sum(1, keepdim=True).clamp_min(1e-30)
    if mass == 1:
        return share > _NEVER_FIRES
    ordered, places = share.sort(dim=1, descending=True, stable=True)
    kept = ordered.cumsum(1) <= mass
    return torch.zeros_like(kept).scatter(1, places, kept)
