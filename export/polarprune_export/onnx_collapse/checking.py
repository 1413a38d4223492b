"""ONNX Runtime on the file before against the file after."""

from typing import TYPE_CHECKING

import numpy as np

from polarprune.errors import ParityError, Refused, first_line
from polarprune_export.onnx_collapse.probing import Feeds, Probe
from polarprune_export.onnx_session import Array, open_session
from polarprune_export.output_comparison import (
    ONNX_TOLERANCE,
    Comparison,
    compare_outputs,
    describe_failure,
)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

FLOAT64_TOLERANCE = 1e-9
FLOAT16_TOLERANCE = 1e-2
"""ONNX Runtime rounds every activation to 11 bits; the sums before it have fewer terms."""
BFLOAT16_TOLERANCE = 5e-2
"""The same with 8 bits."""
QUANTISED_TOLERANCE = 2e-2
"""A last bit of a sum may become a step of the grid, of which there are 255."""
QUANTISING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})


def tolerance_for(model: "onnx.ModelProto", probe: Probe) -> float:
    """Of the largest output, by the coarsest numbers that the model computes with."""
    kinds = {dtype.name for dtype in probe.dtypes.values()}
    if any(node.op_type in QUANTISING for node in model.graph.node):
        return QUANTISED_TOLERANCE
    for kind, tolerance in (
        ("bfloat16", BFLOAT16_TOLERANCE),
        ("float16", FLOAT16_TOLERANCE),
        ("float32", ONNX_TOLERANCE),
    ):
        if kind in kinds:
            return tolerance
    return FLOAT64_TOLERANCE


def check_outputs(before: bytes, after: bytes, feeds: list[Feeds], tolerance: float) -> Comparison:
    """The worse of the comparisons at all sizes.

    Raises:
        ParityError: an error above the tolerance, or another shape.
        Refused: outputs that cannot be compared.
    """
    old, new = open_session(before, threads=1), open_session(after, threads=1)
    worst: Comparison | None = None
    for one in feeds:
        wanted = _run(old, one, "the given model")
        if not all(np.isfinite(array).all() for array in wanted if array.dtype.kind == "f"):
            raise Refused(
                "the model gives values that are not finite on random inputs: nothing to compare"
            )
        try:
            found = compare_outputs(_run(new, one, "the collapsed model"), wanted)
        except ValueError as error:
            raise ParityError(f"{error}; nothing is written, report this") from None
        if not found.max_rel_error <= tolerance:  # true of NaN
            words = describe_failure(
                "the collapsed model", "the given one", "random", found, tolerance
            )
            raise ParityError(f"{words}; nothing is written, report this")
        if worst is None or found.max_rel_error > worst.max_rel_error:
            worst = found
    assert worst is not None
    return worst


def _run(session: "onnxruntime.InferenceSession", feeds: Feeds, which: str) -> list[Array]:
    try:
        outputs = session.run(None, feeds)
    except Exception as error:  # ONNX Runtime's errors share no base class but this one
        raise Refused(
            f"ONNX Runtime does not run {which}: {first_line(error)}; nothing is written"
        ) from None
    for i, output in enumerate(outputs):
        if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub":
            raise Refused(f"output {i} is no tensor of numbers: nothing to compare")
    return [output for output in outputs if isinstance(output, np.ndarray)]
