"""Certificates: two stages compared, with the tolerance, the inputs and the largest error."""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from polarprune.errors import ParityError
from polarprune.gates import GatedNetwork
from polarprune.graph.comparing import forward_float64, relative_error
from polarprune.graph.operators import layer_type
from polarprune.tasks.protocol import scores_of

# In float64 a cut only changes the order of summation: about 1e-15 a layer.
CUT_RTOL = 1e-9


@dataclass(frozen=True)
class Certificate:
    """One link: `stage` computes what `against` computes.

    Attributes:
        inputs: "random" or "real".
        n: how many inputs.
        max_rel_error: largest absolute difference over the largest magnitude, over both modes.
        top1_agreement: share of inputs, or of their pixels, with the same highest class; None where
            that has no meaning.
    """

    stage: str
    against: str
    inputs: str
    n: int
    tolerance: float
    max_rel_error: float
    max_abs_error: float
    top1_agreement: float | None
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def certify(
    gated: GatedNetwork, dense: nn.Module, inputs: Tensor, *, real: bool = False
) -> Certificate:
    """Show that the collapsed network computes what the gated one does with frozen decisions.

    Both are copied, turned to float64 and compared in evaluation and in training mode (dropouts
    off, batch statistics on). Gates that are not frozen are frozen at their present decisions in
    the copy. Where open units keep weights, folding these is compared too, in float64; what is
    compared with the collapsed network then holds the folded weights as it does, rounded once.

    Args:
        inputs: (n, ...); with one image a mirrored second one is added for training mode.
        real: whether the inputs are real images, for the record.

    Raises:
        ParityError: the relative error is above 1e-9, or the outputs' structure differs.
    """
    frozen = copy.deepcopy(gated)
    frozen.set_decisions(frozen.decisions())
    _materialise(frozen)
    worst_rel = _fold(frozen, inputs) if frozen.method.weighs else 0.0
    worst_abs = 0.0
    agreement = None
    for training in (False, True):
        expected = forward_float64(frozen, inputs, training)
        got = forward_float64(dense, inputs, training)
        worst_rel = max(worst_rel, relative_error(expected, got))
        worst_abs = max(worst_abs, _absolute_error(expected, got))
        if not training:
            agreement = top1_agreement(expected, got)
    leaves = [leaf for leaf in pytree.tree_leaves(expected) if isinstance(leaf, Tensor)]
    if not any(bool(leaf.isfinite().any()) for leaf in leaves):
        raise ParityError(
            "the outputs hold no finite number, so nothing was compared; check the weights"
        )
    if not worst_rel <= CUT_RTOL:
        raise ParityError(
            f"the collapsed network differs from the gated one: relative error {worst_rel:.2e}, "
            f"allowed {CUT_RTOL:.0e}; nothing was cut, please report this network"
        )
    return Certificate(
        stage="collapsed",
        against="gated, frozen",
        inputs="real" if real else "random",
        n=len(inputs),
        tolerance=CUT_RTOL,
        max_rel_error=worst_rel,
        max_abs_error=worst_abs,
        top1_agreement=agreement,
        passed=True,
    )


def _fold(frozen: GatedNetwork, inputs: Tensor) -> float:
    """Put the weights of open units into the layers, in place, in the network's own precision.

    Returns:
        The relative error of the same in float64, where nothing is rounded.
    """
    exact = copy.deepcopy(frozen).double()
    exact.fold()
    worst = max(
        relative_error(forward_float64(frozen, inputs, mode), forward_float64(exact, inputs, mode))
        for mode in (False, True)
    )
    frozen.fold()
    return worst


def _materialise(net: nn.Module) -> None:
    """Weights that are computed from others (weight standardisation), as the numbers they are.

    The collapsed network holds these numbers, in the network's own precision.
    """
    derived = [
        (module, str(name), nn.Parameter(getattr(module, str(name)).detach().clone()))
        for module in net.modules()
        if parametrize.is_parametrized(module)
        for name in module.parametrizations  # type: ignore[union-attr]
    ]  # all of them before the first goes: torch writes it into a parameter that others may share
    for module, name, value in derived:
        # Not remove_parametrizations: it changes the class, which the network copied from shares.
        if "parametrizations" in module._modules:
            kind = layer_type(module)
            assert kind is not None
            module.__class__ = kind
            del module._modules["parametrizations"]
        module._parameters[name] = value


def top1_agreement(expected: Any, got: Any) -> float | None:
    """Share of images, or of pixels, with the same highest class; classes lie along axis 1.

    Of one tensor, or of the score maps `out` of a segmentation network's dict.
    """
    left, right = _classes_of(expected), _classes_of(got)
    return None if left is None or right is None else float((left == right).double().mean())


def _classes_of(outputs: Any) -> Tensor | None:
    scores = scores_of(outputs)
    alone = isinstance(outputs, Tensor) and outputs.dim() >= 2
    map_of_dict = isinstance(outputs, dict) and isinstance(scores, Tensor) and scores.dim() == 4
    return scores.argmax(1) if alone or map_of_dict else None


def _absolute_error(expected: Any, got: Any) -> float:
    left, right = pytree.tree_leaves(expected), pytree.tree_leaves(got)
    pairs = [
        (a, b)
        for a, b in zip(left, right, strict=False)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.numel()
    ]
    return max((float(torch.nan_to_num(a - b).abs().max()) for a, b in pairs), default=0.0)
