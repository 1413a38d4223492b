"""Layers of small ONNX graphs, for tests that build them by hand."""

from typing import Any

import numpy as np
import onnx
from random_onnx import Build


def weight(rows: int, columns: int, kernel: int = 1, zero: tuple[int, ...] = ()) -> np.ndarray:
    """Filters of which some are zero."""
    made = np.random.default_rng(rows * 100 + columns).uniform(
        0.2, 1.0, (rows, columns, kernel, kernel)
    )
    made[list(zero)] = 0
    return made.astype(np.float32)


def add_conv(b: Build, x: str, w: np.ndarray, bias: Any = None, **attributes: Any) -> str:
    inputs = [x, b.constant(w, "w")]
    if bias is not None:
        inputs.append(b.constant(np.asarray(bias, np.float32), "b"))
    return b.one("Conv", inputs, kernel_shape=list(w.shape[2:]), **attributes)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
