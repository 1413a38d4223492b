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

from polarprune_export.onnx_session import Array, open_session, run_session
from polarprune_export.quantization import MATRIX_OPERATORS, Quantizer

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
    """
    wanted = _outputs(model, images)

    def agreement(candidate: "onnx.ModelProto") -> float:
        got = _outputs(candidate, images)
        return float((got.argmax(axis=1) == wanted.argmax(axis=1)).mean())

    whole = quantizer.quantized()
    reached = agreement(whole)
    if reached >= AGREEMENT:
        return Int8Choice(whole, (), reached, {})
    layers = [node.name for node in model.graph.node if node.op_type in MATRIX_OPERATORS]
    ranking, reference = images[:RANKING_IMAGES], wanted[:RANKING_IMAGES]
    errors: dict[str, float] = {}
    for i, layer in enumerate(layers):
        alone = quantizer.quantized(only=[layer])
        errors[layer] = _rms(_outputs(alone, ranking) - reference) / _rms(reference)
        if progress is not None:
            progress("sensitivity", i + 1, len(layers))
    worst_first = sorted(layers, key=lambda layer: -errors[layer])
    # With the first `few` of them in float32 it is not good enough, with `enough` it is.
    few, enough = 0, len(layers)
    candidate = quantizer.quantized(keep=worst_first)
    while enough - few > 1:
        count = (few + enough) // 2
        trial = quantizer.quantized(keep=worst_first[:count])
        if agreement(trial) >= AGREEMENT:
            candidate, enough = trial, count
        else:
            few = count
    kept = tuple(sorted(worst_first[:enough]))
    return Int8Choice(candidate, kept, agreement(candidate), errors)


def _outputs(model: "onnx.ModelProto", images: Array) -> Array:
    """The first output, classes along axis 1."""
    return run_session(open_session(model.SerializeToString()), images, chunk=CHUNK)[0]


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) or 1e-12
