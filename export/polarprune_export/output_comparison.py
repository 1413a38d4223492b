"""How far two sets of outputs are apart, in numpy alone: the verifier of a bundle has no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polarprune_export.onnx_session import Array

ONNX_TOLERANCE = 1e-5
"""Of the largest output, float32 ONNX Runtime against float64. Nine torchvision networks and the
CIFAR ResNets up to 110 layers measured 1e-7 to 7e-7; one weight wrong by half showed 6e-5."""


@dataclass(frozen=True)
class Comparison:
    """The largest errors over all outputs, and where the worst is.

    `max_rel_error` is, for each output, its largest error over its largest reference value: an
    element-wise ratio would say nothing where the reference happens to pass through zero. Both are
    NaN if any value is not finite. `top1_agreement` is the share of positions of the scored
    output whose largest class is the same.
    """

    max_abs_error: float
    max_rel_error: float
    top1_agreement: float | None
    worst: str


def compare_outputs(
    outputs: Sequence[Array], reference: Sequence[Array], scored: int = 0
) -> Comparison:
    """Compares outputs in the order given; batch first, classes second.

    Args:
        scored: whose largest class is compared.

    Raises:
        ValueError: another number of outputs, or another shape: these are not the same network.
    """
    largest_abs, largest_rel, worst = 0.0, 0.0, "no value differs"
    for i, (got, wanted) in enumerate(zip(outputs, reference, strict=True)):
        if got.shape != wanted.shape:
            raise ValueError(f"output {i} has shape {got.shape}, the reference {wanted.shape}")
        with np.errstate(invalid="ignore"):  # inf - inf is the NaN that is looked for below
            error = np.abs(got.astype(np.float64) - wanted)
        if not np.isfinite(error).all():
            place = np.unravel_index(int(np.argmin(np.isfinite(error))), error.shape)
            return Comparison(np.nan, np.nan, None, _place(i, place, got, wanted))
        scale = float(np.abs(wanted).max(initial=0.0)) or 1.0  # all zero: the error itself
        absolute = float(error.max(initial=0.0))
        largest_abs = max(largest_abs, absolute)
        if absolute / scale > largest_rel:
            largest_rel = absolute / scale
            place = np.unravel_index(int(error.argmax()), error.shape)
            worst = _place(i, place, got, wanted)
    return Comparison(
        largest_abs, largest_rel, _agreement(outputs[scored], reference[scored]), worst
    )


def describe_failure(
    stage: str, against: str, inputs: str, comparison: Comparison, tolerance: float
) -> str:
    """What was violated and what was got, for the ParityError of a failed comparison."""
    return (
        f"{stage} and {against} differ by {comparison.max_rel_error:.3g} of the largest output on "
        f"{inputs} inputs (tolerance {tolerance:g}): {comparison.worst}"
    )


def _place(i: int, place: tuple[np.intp, ...], got: Array, wanted: Array) -> str:
    index = ", ".join(str(int(position)) for position in place)
    return f"output {i}[{index}] is {got[place]:.9g}, the reference {wanted[place]:.9g}"


def _agreement(got: Array, wanted: Array) -> float | None:
    if got.ndim < 2:
        return None
    return float((got.argmax(axis=1) == wanted.argmax(axis=1)).mean())
