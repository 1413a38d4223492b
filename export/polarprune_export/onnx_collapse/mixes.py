"""Mixing operators seen alike: which input channel each output channel reads, and how strongly."""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.constants import Constants
from polarprune_export.onnx_collapse.labels import Ids, Known, Mask
from polarprune_export.onnx_collapse.operators import attribute, kind_of
from polarprune_export.onnx_session import Array


@dataclass(frozen=True)
class Mix:
    """A Conv, ConvTranspose, Gemm or MatMul with constant weights.

    Attributes:
        groups: 1 where every output may read every input.
        reads: (c_out, c_in / groups), whether any weight there is not zero.
        sums: the same shape, the sum of the weights there.
        bias: (c_out,), zeros where there is none.
        folds: a constant input that is not zero can go into the bias exactly.
        inputs: positions of the input channels; None where they cannot be told apart.
        outputs: positions of the output channels.
    """

    node: ir.Node
    source: ir.Value
    groups: int
    reads: Mask
    sums: Known
    bias: Known
    folds: bool
    known: Known
    inputs: Ids | None = None
    outputs: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def shape(self) -> tuple[int, int]:
        """c_out, c_in."""
        return len(self.reads), self.reads.shape[1] * self.groups

    def foldable(self) -> Mask:
        """Per input channel whether its constant needs nobody to carry it."""
        zero = self.known == 0
        return zero | ~np.isnan(self.known) if self.folds else zero

    def columns(self) -> Ids:
        """(c_out, c_in / groups): the input channel that each weight belongs to."""
        c_out, _ = self.shape
        each = self.reads.shape[1]
        first = np.arange(c_out) // (c_out // self.groups) * each
        return np.asarray(first[:, None] + np.arange(each)[None])

    def output_constants(self) -> Known:
        """(c_out,): what an output holds where all that it reads is known; NaN otherwise."""
        values = np.where(self.foldable(), self.known, np.nan)[self.columns()]
        terms = np.where(self.reads, values * self.sums, 0.0)
        found = terms.sum(axis=1) + self.bias
        return np.where(np.isfinite(found), found, np.nan)


def weight_matrix(node: ir.Node, weight: Array) -> "tuple[Array, int] | None":
    """The weights as (c_out, c_in / groups, taps), and the number of groups."""
    kind = kind_of(node)
    if kind in ("Conv", "ConvTranspose"):
        groups = int(attribute(node, "group", 1))
        if weight.ndim < 3 or 0 in weight.shape:
            return None
        flat = weight.reshape(*weight.shape[:2], -1)
        if kind == "Conv":
            return flat, groups
        c_in, each, taps = flat.shape  # (c_in, c_out / groups, taps)
        split = flat.reshape(groups, c_in // groups, each, taps)
        return split.transpose(0, 2, 1, 3).reshape(groups * each, c_in // groups, taps), groups
    if weight.ndim != 2 or 0 in weight.shape:
        return None
    across = kind == "Gemm" and attribute(node, "transB", 0)
    return (weight if across else weight.T)[:, :, None], 1


def make_mix(
    node: ir.Node, constants: Constants, known: Known, numbers: "tuple[int, int] | None" = None
) -> Mix | None:
    """The mix of a node; None where its weights are no constants or it is used in another way."""
    kind = kind_of(node)
    weight = constants.array(node.inputs[1])
    if weight is None or weight.dtype.kind not in "fV" and weight.dtype.name != "bfloat16":
        return None
    matrix = weight_matrix(node, weight)
    if matrix is None:
        return None
    weights, groups = matrix
    alpha = float(attribute(node, "alpha", 1.0)) if kind == "Gemm" else 1.0
    beta = float(attribute(node, "beta", 1.0)) if kind == "Gemm" else 1.0
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    given = None if bias_value is None else constants.array(bias_value)
    if bias_value is not None and (given is None or given.size not in (1, len(weights))):
        return None
    bias = np.zeros(len(weights))
    if given is not None:
        bias = bias + beta * given.reshape(-1).astype(np.float64)
    if len(known) != weights.shape[1] * groups:
        return None
    carries = kind != "MatMul" and not (kind == "Gemm" and beta == 0)
    stored = bias_value is not None and constants.quantised(bias_value)
    return Mix(
        node=node,
        source=_source(node),
        groups=groups,
        reads=(weights != 0).any(axis=2),
        sums=alpha * weights.astype(np.float64).sum(axis=2),
        bias=bias,
        folds=carries and not stored and not pads(node, weight),
        known=known,
    )


def pads(node: ir.Node, weight: Array) -> bool:
    """Whether some output meets fewer than all taps: at a border, or between strides."""
    kind = kind_of(node)
    if kind not in ("Conv", "ConvTranspose") or all(side == 1 for side in weight.shape[2:]):
        spread = kind == "ConvTranspose" and any(s != 1 for s in attribute(node, "strides", ()))
        return spread or any(attribute(node, "pads", ()))
    if kind == "ConvTranspose":
        return True
    mode = attribute(node, "auto_pad", "NOTSET")
    return mode.startswith("SAME") or (mode == "NOTSET" and any(attribute(node, "pads", ())))


def _source(node: ir.Node) -> ir.Value:
    source = node.inputs[0]
    assert source is not None
    return source
