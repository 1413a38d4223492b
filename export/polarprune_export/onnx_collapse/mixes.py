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
        weights: (groups, c_out / groups, c_in / groups, taps).
        reads: the same without taps, whether any weight there is not zero.
        factor: what all weights are multiplied by (alpha of a Gemm).
        bias: (c_out,), zeros where there is none.
        folds: a constant input that is not zero can go into the bias exactly.
        known: (c_in,), what each input channel holds; NaN: unknown.
        inputs: positions of the input channels; None where they cannot be told apart.
        outputs: positions of the output channels.
    """

    node: ir.Node
    source: ir.Value
    weights: Array
    reads: Mask
    factor: float
    bias: Known
    folds: bool
    known: Known
    inputs: Ids | None = None
    outputs: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def groups(self) -> int:
        """1 where every output may read every input."""
        return len(self.reads)

    @property
    def shape(self) -> tuple[int, int]:
        """c_out, c_in."""
        return self.groups * self.reads.shape[1], self.groups * self.reads.shape[2]

    def foldable(self) -> Mask:
        """(c_in,): whether the channel's constant needs nobody to carry it."""
        found: Mask = ~np.isnan(self.known) if self.folds else self.known == 0
        return found

    def wanted(self, rows: Mask) -> Mask:
        """(c_in,): what these outputs read, but for constants that can be folded."""
        picked = self.reads & rows.reshape(self.groups, -1, 1)
        read: Mask = picked.any(axis=1).reshape(-1) & ~self.foldable()
        return read

    def contribution(self, channels: Mask) -> Known:
        """(c_out,): what these constant input channels add to each output."""
        chosen = np.where(channels & self.foldable() & (self.known != 0), self.known, 0.0)
        places = np.flatnonzero(chosen)
        total = np.zeros(self.shape[0])
        each_in, each_out = self.reads.shape[2], self.reads.shape[1]
        for place in places:  # few: constants that are not zero
            group, column = divmod(int(place), each_in)
            sums = self.weights[group, :, column].astype(np.float64).sum(axis=-1)
            total[group * each_out : (group + 1) * each_out] += self.factor * chosen[place] * sums
        return total

    def output_constants(self) -> Known:
        """(c_out,): what an output holds where all that it reads is known; NaN otherwise."""
        unread = self.reads & ~self.foldable().reshape(self.groups, 1, -1)
        unknown = unread.any(axis=2).reshape(-1)
        found = self.bias + self.contribution(np.ones(self.shape[1], dtype=bool))
        return np.where(unknown | ~np.isfinite(found), np.nan, found)


def weight_matrix(node: ir.Node, weight: Array) -> Array | None:
    """The weights as (groups, c_out / groups, c_in / groups, taps); None of another rank."""
    kind = kind_of(node)
    if kind in ("Conv", "ConvTranspose"):
        groups = int(attribute(node, "group", 1))
        if weight.ndim < 3 or 0 in weight.shape:
            return None
        split = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        return split if kind == "Conv" else split.swapaxes(1, 2)
    if weight.ndim != 2 or 0 in weight.shape:
        return None
    across = kind == "Gemm" and attribute(node, "transB", 0)
    return (weight if across else weight.T)[None, :, :, None]


def make_mix(node: ir.Node, constants: Constants, known: Known) -> Mix | None:
    """The mix of a node; None where its weights are no constants or it is used in another way."""
    kind, source = kind_of(node), node.inputs[0]
    weight = constants.array(node.inputs[1])
    if source is None or weight is None or not _is_float(weight):
        return None
    weights = weight_matrix(node, weight)
    if weights is None:
        return None
    groups, each_out, each_in = weights.shape[:3]
    factor = float(attribute(node, "alpha", 1.0)) if kind == "Gemm" else 1.0
    beta = float(attribute(node, "beta", 1.0)) if kind == "Gemm" else 1.0
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    given = constants.array(bias_value)
    bias = np.zeros(groups * each_out)
    if bias_value is not None:
        # One number an output; of Gemm a column would be one number an image.
        if given is None or given.size not in (1, len(bias)) or given.shape[-1:] != (given.size,):
            return None
        bias = bias + beta * given.reshape(-1).astype(np.float64)
    if len(known) != groups * each_in or _scaled_by_column(node, constants, groups):
        return None
    carries = kind != "MatMul" and not (kind == "Gemm" and beta == 0)
    stored = bias_value is not None and constants.quantised(bias_value)
    return Mix(
        node=node,
        source=source,
        weights=weights,
        reads=(weights != 0).any(axis=3),
        factor=factor,
        bias=bias,
        folds=carries and not stored and not pads(node, weight),
        known=known,
    )


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _scaled_by_column(node: ir.Node, constants: Constants, groups: int) -> bool:
    """Whole numbers with a scale per column of a group, or per block: no cut of these is known."""
    value = node.inputs[1]
    if value is None or not constants.quantised(value):
        return False
    producer = value.producer()
    assert producer is not None
    scale = constants.array(producer.inputs[1])
    if scale is None or attribute(producer, "block_size", 0):
        return True
    return scale.size > 1 and groups > 1 and int(attribute(producer, "axis", 1)) == 1


def pads(node: ir.Node, weight: Array) -> bool:
    """Whether some output meets fewer than all taps: at a border, or between strides."""
    kind = kind_of(node)
    if kind not in ("Conv", "ConvTranspose"):
        return False
    single = all(side == 1 for side in weight.shape[2:])
    padded = any(attribute(node, "pads", ())) or any(attribute(node, "output_padding", ()))
    if kind == "ConvTranspose":
        apart = any(s != 1 for s in attribute(node, "strides", ()))
        return not single or padded or apart or attribute(node, "output_shape") is not None
    mode = attribute(node, "auto_pad", "NOTSET")
    return (mode.startswith("SAME") and not single) or (mode == "NOTSET" and padded)
