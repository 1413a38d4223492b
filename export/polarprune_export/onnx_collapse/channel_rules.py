"""Operators that keep each channel to itself along its axis: norms, pools, reductions, softmax."""

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.labels import ConstantUse, Known, Spread
from polarprune_export.onnx_collapse.operators import (
    KEEP_CONSTANT,
    KEEP_ZERO,
    NORMALISING,
    PER_CHANNEL,
    REDUCING,
    attribute,
    kind_of,
)

if TYPE_CHECKING:
    from polarprune_export.onnx_collapse.analysis import Analysis

FIRST_SOFTMAX_OF_ONE_AXIS = 13


def follow_axis_rules(analysis: "Analysis", node: ir.Node) -> bool:
    """One rule a family; refused where the family works along the channels' own axis."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None or any(value.uses() for value in node.outputs[1:]):
        return False
    kind = kind_of(node)
    found = analysis.spreads.get(source)
    if found is None and kind not in PER_CHANNEL:
        return True  # nothing to tell apart, nothing to pin
    shape, given = analysis.shape(result), analysis.shape(source)
    if shape is None or given is None:
        return False
    if kind in PER_CHANNEL:
        return _per_channel(analysis, node, source)
    assert found is not None
    if kind in REDUCING:
        return _reduce(analysis, node, found, len(given))
    if kind in NORMALISING:
        if found.axis in _normalised(analysis, node, len(given)):
            return False
        return _pass_on(analysis, node, found, found.axis, np.full(len(found.known), np.nan))
    if len(shape) != len(given) or shape[found.axis] != given[found.axis]:
        return False
    if kind not in ("Resize", "Upsample") and found.axis != 1:
        return False
    return _pass_on(analysis, node, found, found.axis, _after_pool(node, found.known))


def _pass_on(analysis: "Analysis", node: ir.Node, found: Spread, axis: int, known: Known) -> bool:
    result = node.outputs[0]
    if not analysis.put(result, axis, found.labels, known):
        return False
    analysis.flow(node, analysis.spreads[result].positions, found.positions)
    return True


def _per_channel(analysis: "Analysis", node: ir.Node, source: ir.Value) -> bool:
    parameters = [analysis.constants.array(value) for value in node.inputs[1:]]
    arrays = [a.astype(np.float64) for a in parameters if a is not None and a.ndim == 1]
    wanted = 4 if kind_of(node) == "BatchNormalization" else 2
    if len(arrays) != len(node.inputs) - 1 or len(arrays) != wanted:
        return False
    if attribute(node, "training_mode", 0):
        return False
    found = analysis.along(source, 1)
    if found is None or any(len(a) != len(found.labels) for a in arrays):
        return False
    if wanted == 4:
        scale, shift, mean, variance = arrays
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
            known = np.where(factor == 0, shift, factor * (found.known - mean) + shift)
    else:
        # The mean of a constant is rounded, and the rounding divided by a small root: only of
        # zeros is it sure that nothing is left.
        scale, shift = arrays
        known = np.where((scale == 0) | (found.known == 0), shift, np.nan)
    for index in range(1, len(node.inputs)):
        labels = analysis.labels.new(len(found.labels))
        analysis.labels.tie(found.labels, labels)
        analysis.constant_uses.append(ConstantUse(node, index, 0, labels))
    return _pass_on(analysis, node, found, 1, known)


def _after_pool(node: ir.Node, known: Known) -> Known:
    """A constant stays one unless zeros of a padding are averaged in, or others put there."""
    kind = kind_of(node)
    keeps = True
    if kind == "AveragePool":
        padded = any(attribute(node, "pads", ())) or attribute(node, "ceil_mode", 0)
        padded = padded or attribute(node, "auto_pad", "NOTSET").startswith("SAME")
        keeps = not (padded and attribute(node, "count_include_pad", 0))
    elif kind in ("LpPool", "GlobalLpPool"):
        keeps = False
    elif kind == "Resize":
        mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
        if mode == "tf_crop_and_resize":
            return np.full(len(known), np.nan)
    return known if keeps else np.where(known == 0, 0.0, np.nan)


def _reduce(analysis: "Analysis", node: ir.Node, found: Spread, rank: int) -> bool:
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        given = analysis.constants.array(node.inputs[1])
        if given is None:
            return False
        axes = given.reshape(-1).tolist()
    if not axes:
        if not attribute(node, "noop_with_empty_axes", 0):
            return False
        axes = []
    gone = {int(a) % rank for a in axes}
    if found.axis in gone:
        return False
    axis = found.axis
    if not attribute(node, "keepdims", 1):
        axis -= sum(a < axis for a in gone)
    known = np.full(len(found.known), np.nan)
    if kind_of(node) in KEEP_CONSTANT:
        known = found.known
    elif kind_of(node) in KEEP_ZERO:
        known = np.where(found.known == 0, 0.0, np.nan)
    return _pass_on(analysis, node, found, axis, known)


def _normalised(analysis: "Analysis", node: ir.Node, rank: int) -> set[int]:
    """The axes that a softmax works along: before opset 13 all from its axis on."""
    if analysis.constants.opsets.get("", 0) < FIRST_SOFTMAX_OF_ONE_AXIS:
        return set(range(int(attribute(node, "axis", 1)) % rank, rank))
    return {int(attribute(node, "axis", -1)) % rank}
