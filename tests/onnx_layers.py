"""Layers of small ONNX graphs, for tests that build them by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from random_onnx import Build

from polarprune_export import CollapseReport, collapse_onnx


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


def collapse(
    tmp_path: Path, model: onnx.ModelProto
) -> tuple[CollapseReport, onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """The report, the model written, and the shapes of what it stores."""
    onnx.save(model, tmp_path / "in.onnx")
    report = collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    made = onnx.load(tmp_path / "out.onnx")
    again = collapse_onnx(tmp_path / "out.onnx", tmp_path / "again.onnx")
    assert not again.changed
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    return report, made, {t.name: tuple(t.dims) for t in made.graph.initializer}


def straight(bias: Any, kernel: int, pads: int, first_zero: tuple[int, ...] = (1, 3)) -> Build:
    """Conv (some filters zero), Relu, Conv: the second has two filters."""
    b = Build(0)
    x = add_conv(b, "x", weight(5, 3, zero=first_zero), bias)
    x = b.one("Relu", [x])
    b.last = add_conv(b, x, weight(2, 5, kernel), pads=[pads] * 4)  # type: ignore[attr-defined]
    return b
