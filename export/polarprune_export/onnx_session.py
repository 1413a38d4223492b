"""ONNX Runtime on the CPU, opened from bytes: what was hashed is what runs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from polarprune.errors import Refused
from polarprune.optional_packages import import_package

if TYPE_CHECKING:
    import onnxruntime

Array = npt.NDArray[Any]

MOST_PIXELS = 1 << 21
"""Of all images that are computed at once: 8 of 512 x 512."""
LOG_ERRORS_ONLY = 3
"""ONNX Runtime's own number; its warnings would land in the middle of a table."""

LOG_NOTHING = 4
"""The same: fatal errors only; others are raised as well."""


def require_onnxruntime() -> Any:
    """The module `onnxruntime`.

    Raises:
        BackendUnavailable: it is not installed.
    """
    return import_package(
        "onnxruntime", "pip install 'polarprune[cpu]' ('polarprune[gpu]' for CUDA; never both)"
    )


def open_session(
    model: bytes, *, threads: int | None = None, optimised: bool = True
) -> "onnxruntime.InferenceSession":
    """A session on the CPU provider; `threads` None leaves the number to ONNX Runtime.

    Args:
        optimised: False runs the graph as it is written, and is silent where that fails: sizes
            are tried like this.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed.
        Refused: ONNX Runtime does not accept the model; its reason is given.
    """
    runtime = require_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = LOG_ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = LOG_NOTHING
    try:
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class but this one
        raise Refused(f"ONNX Runtime does not accept the model: {_first_line(error)}") from None


def run_session(
    session: "onnxruntime.InferenceSession", images: Array, *, chunk: int
) -> list[Array]:
    """All outputs for all images, computed `chunk` images at a time (memory stays bounded).

    A model with a batch size of its own gets batches of that size, the last one filled up.

    Raises:
        Refused: ONNX Runtime cannot run the model on them, or an output is not one an image; its
            reason is given.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise Refused(
            f"the model has {len(inputs)} inputs, only those with one, an image, can be run"
        )
    name, size = inputs[0].name, inputs[0].shape[0]
    fixed = size if isinstance(size, int) else None
    parts = []
    try:
        for part in split_batch(images, fixed or chunk, exact=fixed is not None):
            missing = 0 if fixed is None else fixed - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            parts.append([output[: len(part)] for output in session.run(None, {name: filled})])
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    except Exception as error:  # its exceptions share no base class but this one
        raise Refused(f"ONNX Runtime cannot run the model: {_first_line(error)}") from None


def scored_output(session: "onnxruntime.InferenceSession") -> int:
    """Which output is scored, as `tasks.protocol.scores_of` has it: `out`, else the first."""
    names = [output.name for output in session.get_outputs()]
    return names.index("out") if "out" in names else 0


def split_batch(images: Array, chunk: int, *, exact: bool = False) -> Iterator[Array]:
    """The images in order, `chunk` at a time, or fewer of large ones; the last part shorter.

    Args:
        exact: not fewer of large ones.
    """
    if images.ndim == 4 and not exact:
        pixels = images.size // max(1, len(images)) // 3
        chunk = max(1, min(chunk, MOST_PIXELS // max(1, pixels)))
    for start in range(0, len(images), chunk):
        yield images[start : start + chunk]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
