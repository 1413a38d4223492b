"""`--precision`: from the checked float32 file to the file that is shipped, and what runs it here.

A CPU only emulates float16 and bfloat16 (`half_emulation.py`); the stage names of the certificate
say so. int8 it computes.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polarprune.errors import Refused
from polarprune_export.half_emulation import emulate_half
from polarprune_export.half_precision import LARGEST, lower_to_half
from polarprune_export.onnx_session import Array, split_batch
from polarprune_export.output_comparison import ONNX_TOLERANCE
from polarprune_export.quantization import Quantizer
from polarprune_export.sensitivity import choose_int8
from polarprune_export.value_ranges import largest_values, nodes_above

if TYPE_CHECKING:
    import onnx

TOLERANCES = {"fp32": ONNX_TOLERANCE, "fp16": 5e-3, "bf16": 4e-2, "int8": 0.25}
"""Of the largest output, against float64; for gross errors, what is lost shows in the accuracy.

Each operator rounds, by 5e-4 in fp16 and 4e-3 in bf16, and the errors of some hundred operators add
up in every direction: here to 10 roundings. Networks with real weights had up to 3 and 4, most that
had hardly been trained up to 6; an exchange of two channels must not pass.
"""
STAGES = {
    "fp32": "onnxruntime (float32)",
    "fp16": "onnxruntime (float16, emulated)",
    "bf16": "onnxruntime (bfloat16, emulated)",
    "int8": "onnxruntime (int8)",
}
HEADROOM = 2.0
"""Other images may reach larger values than those that were looked at."""
CHUNK = 32

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Samples:
    """What a precision is chosen by: images as the network takes them, none of the test split.

    Attributes:
        calibration: (n, c, h, w) float32; real ones, or random ones where there are none.
        held_out: other real ones, which say whether what was chosen is good enough.
    """

    calibration: Array
    held_out: Array


@dataclass(frozen=True)
class Lowered:
    """A model in its precision. `kept` names the nodes that stayed in float32, and `why`."""

    model: "onnx.ModelProto"
    kept: tuple[str, ...]
    why: str | None


def lower_precision(
    model: "onnx.ModelProto", precision: str, samples: Samples, progress: Progress | None = None
) -> Lowered:
    """The float32 model in another precision; its inputs and outputs stay float32.

    Args:
        model: as `write_onnx` writes it; left unmodified.
        precision: any but fp32.

    Raises:
        Refused: no weights can have that precision.
    """
    from onnx import ModelProto

    lowered = ModelProto()
    lowered.CopyFrom(model)
    if precision == "int8":
        with tempfile.TemporaryDirectory() as folder:
            quantizer = Quantizer(lowered, samples.calibration, Path(folder))
            choice = choose_int8(lowered, quantizer, samples.held_out, progress)
        why = f"measured: with them {100 * choice.agreement:.1f} % of held-out images agree"
        return Lowered(choice.model, choice.kept, why if choice.kept else None)
    found = largest_values(lowered, split_batch(samples.calibration, CHUNK))
    too_large = nodes_above(lowered, found, LARGEST[precision] / HEADROOM)
    kept = lower_to_half(lowered, precision, too_large)
    if precision_of(lowered) != precision:
        raise Refused(
            f"no weights can be {precision}: all layers have values above "
            f"{LARGEST[precision] / HEADROOM:g}; choose another precision"
        )
    why = (
        f"values above {LARGEST[precision] / HEADROOM:g}, constants that {precision} does not "
        "have, or no such operator"
    )
    return Lowered(lowered, kept, why if kept else None)


def precision_of(model: "onnx.ModelProto") -> str:
    """That of its weights: one of `PRECISIONS`."""
    from onnx import TensorProto

    kinds = {tensor.data_type for tensor in model.graph.initializer}
    for kind, name in ((TensorProto.FLOAT16, "fp16"), (TensorProto.BFLOAT16, "bf16")):
        if kind in kinds:
            return name
    quantised = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    return "int8" if quantised else "fp32"


def runnable(model: "onnx.ModelProto", precision: str) -> bytes:
    """What ONNX Runtime's CPU provider computes in the model's place."""
    shown = emulate_half(model) if precision in ("fp16", "bf16") else model
    content: bytes = shown.SerializeToString(deterministic=True)
    return content
