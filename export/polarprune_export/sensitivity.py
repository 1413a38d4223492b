"""Which layers of an int8 network cost accuracy, measured one by one, and left in float32.

Whether the whole network may be int8 is asked of real images that calibration did not see: its
highest class must be that of float32 on nearly all of them (of a segmentation: of the pixels). If
not, each layer is quantised alone, and those that move the outputs most stay in float32, as few as
will do. No label and no test image is looked at. Source: ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from polarprune.errors import Refused
from polarprune_export.onnx_session import Array, open_session, run_session, scored_output
from polarprune_export.quantization import Quantizer

if TYPE_CHECKING:
    import onnx

AGREEMENT = 0.99
CHUNK = 64
RANKING_IMAGES = 32
"""A layer's own error is an average over all outputs: few images tell layers apart."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Int8Choice:
    """The network that was chosen.

    `kept` are layers in float32; `agreement` is the share of images (or pixels) with the class of
    float32, `errors` each layer's own RMS error over the outputs' RMS, empty where it was not
    needed.
    """

    model: "onnx.ModelProto"
    kept: tuple[str, ...]
    agreement: float
    errors: dict[str, float]


def choose_int8(
    model: "onnx.ModelProto",
    quantizer: Quantizer,
    images: Array,
    progress: Progress | None = None,
) -> Int8Choice:
    """Quantises as much as the images allow.

    Args:
        model: float32.
        quantizer: calibrated on other images.
        images: as the network takes them, (n, c, h, w); real ones.

    Raises:
        Refused: no layer can be int8 at that price.
    """
    scored = scored_output(open_session(model.SerializeToString()))
    wanted = _output(model, images, scored)

    def agreement(candidate: "onnx.ModelProto") -> float:
        got = _output(candidate, images, scored)
        return float((got.argmax(axis=1) == wanted.argmax(axis=1)).mean())

    whole = quantizer.quantized()
    reached = agreement(whole)
    if reached >= AGREEMENT:
        return Int8Choice(whole, (), reached, {})
    layers = quantizer.choices
    ranking, reference = images[:RANKING_IMAGES], wanted[:RANKING_IMAGES]
    errors: dict[str, float] = {}
    for i, layer in enumerate(layers):
        alone = quantizer.quantized(only=[layer])
        error = _rms(_output(alone, ranking, scored) - reference) / _rms(reference)
        errors[layer] = error if np.isfinite(error) else np.inf
        if progress is not None:
            progress("sensitivity", i + 1, len(layers))
    worst_first = sorted(layers, key=lambda layer: -errors[layer])
    # With the first `few` of them in float32 it is not good enough, with all of them it is exact.
    few, enough = 0, len(layers)
    candidate = model
    while enough - few > 1:
        count = (few + enough) // 2
        trial = quantizer.quantized(keep=worst_first[:count])
        if agreement(trial) >= AGREEMENT:
            candidate, enough = trial, count
        else:
            few = count
    kept = worst_first[:enough]
    if set(quantizer.matrices) <= set(kept):
        raise Refused(
            f"int8 costs too much: with any layer in it fewer than {100 * AGREEMENT:.0f} % of the "
            "held-out images keep their class; choose another precision"
        )
    return Int8Choice(candidate, tuple(sorted(kept)), agreement(candidate), errors)


def _output(model: "onnx.ModelProto", images: Array, scored: int) -> Array:
    """What is scored, classes along axis 1."""
    return run_session(open_session(model.SerializeToString()), images, chunk=CHUNK)[scored]


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) or 1e-12
