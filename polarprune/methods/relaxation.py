"""Continuous relaxation: one weight a unit between 0 and 1, driven away from the middle.

Larson et al., "A Generalization of Continuous Relaxation in Structured Pruning" (arXiv 2308.14605).
Its body could not be read. The relaxation, the structure loss, the Gaussian fence-sitter loss, its
delayed cubic ramp and the annealed alternative are those of the authors' published code (CRISP,
networks/totalloss.py and cell2d.py); doing it in one pass, the aim that falls to the target, and
folding what is left of the weights are **ours**. There a unit that ends below a threshold is cut;
here the threshold is the one that meets the target.

Blocks have weights too (**ours**). The authors had such and took them back, since relaxed and
pruned networks disagreed: a normalisation makes up for a small weight. They disagree here as well,
at the cut; but with channels alone the search cuts the widest tensors to a fifth, and ends worse
(benchmarks/results/tuning, n = 1: 83.8 % in place of 86.3 %).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polarprune.errors import ConfigError
from polarprune.methods.protocol import GateOutput, GateRequest, Method, Units

# w = sigmoid(5 s) with s = 1 at the start: 0.993 (the authors' numbers).
_STEEPNESS = 5.0
_INITIAL = 1.0
# Below this a unit is closed for good measure: the authors' lowest threshold. Its gradient stays.
_CLOSED = 0.02
# Of the annealed alternative, at the end of the search (the authors').
_STEEPEST = 30.0
# Width of the Gaussian bump (the authors').
_SIGMA = 1.0
# Weights of the losses, and the parts of the search in which they act: ours, in one pass.
_STRUCTURE = 1.0
_MOST_STRUCTURE = 10.0
_FENCE_SITTERS = 1.0
_APPROACH = 0.6
_EJECTION = (0.4, 0.8)


class RelaxedGate(nn.Module):
    """One real number s a unit, the same for every image; w = sigmoid(k s) (paper B)."""

    steepness: Float[Tensor, ""]

    def __init__(self, units: int) -> None:
        """All units open."""
        super().__init__()
        self.s = nn.Parameter(torch.full((units,), _INITIAL))
        self.register_buffer("steepness", torch.tensor(_STEEPNESS))

    def weights(self) -> Float[Tensor, " g"]:
        """W of each unit, in (0, 1)."""
        return torch.sigmoid(self.steepness * self.s)

    def forward(self, pooled: Float[Tensor, "n 0"]) -> GateOutput:
        """W as it is; below 0.02 exactly 0, with the gradient of w."""
        w = self.weights()
        values = w - torch.where(w < _CLOSED, w, torch.zeros_like(w)).detach()
        return GateOutput(values.unsqueeze(0), w, values)


class Relaxation(Method):
    """Weights that are multiplied in while training, and folded into the network at the end.

    A decision is a threshold on w; the weight of what stays is not 1, and is kept.
    """

    name = "relaxation"
    options = ("ejector",)
    thresholds = False
    watches = False

    def __init__(self, ejector: str = "gaussian") -> None:
        """Choose what drives units away from the middle.

        Args:
            ejector: "gaussian", a loss with its maximum at s = 0; or "annealed", a steepness k that
                grows from 5 to 30.

        Raises:
            ConfigError: neither.
        """
        if ejector not in ("gaussian", "annealed"):
            raise ConfigError(f"--ejector must be gaussian or annealed, got {ejector!r}")
        self.ejector = ejector
        self.gates: list[RelaxedGate] = []

    def make_gates(self, requests: list[GateRequest], parameter_budget: int) -> list[nn.Module]:
        """One number a unit."""
        self.gates = [RelaxedGate(request.units) for request in requests]
        return list(self.gates)

    def open_weights(self, gate: nn.Module) -> Float[Tensor, " g"]:
        """W of each unit."""
        assert isinstance(gate, RelaxedGate)
        return gate.weights()

    def loss(
        self, units: Units, ratio: Float[Tensor, ""], target: float, progress: float
    ) -> Float[Tensor, ""]:
        """Structure loss, and the fence-sitter loss or a steeper k."""
        aim = 1.0 + (target - 1.0) * min(1.0, progress / _APPROACH)
        weight = _STRUCTURE + (_MOST_STRUCTURE - _STRUCTURE) * progress**2
        structure = weight * (ratio - aim).abs()
        ejection = cubic_ramp(progress, *_EJECTION)
        if self.ejector == "annealed":
            for gate in self.gates:
                # Another tensor: the backward pass still needs the one of the forward pass.
                gate.steepness = torch.full_like(
                    gate.steepness, _STEEPNESS + (_STEEPEST - _STEEPNESS) * ejection
                )
            return structure
        return structure + _FENCE_SITTERS * ejection * fence_sitter_loss(units.probability)


def fence_sitter_loss(w: Float[Tensor, " g"]) -> Float[Tensor, ""]:
    """Root mean square of exp(-(s / 2 sigma^2)^2) over units, s = logit(w) / k (paper B's code)."""
    s = torch.logit(w.float(), eps=1e-6) / _STEEPNESS  # half precision has no 1 - 1e-6
    bump = torch.exp(-((s / (2 * _SIGMA**2)) ** 2))
    return bump.square().mean().clamp_min(1e-12).sqrt()


def cubic_ramp(progress: float, start: float, full: float) -> float:
    """0 until `start`, 1 from `full` on, a cubic in between."""
    return min(1.0, max(0.0, (progress - start) / (full - start))) ** 3
