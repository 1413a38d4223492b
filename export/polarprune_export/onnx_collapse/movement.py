"""Operators that only move data: they run on the places of channels, whatever they do."""

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.labels import ConstantUse, Ids, Spread
from polarprune_export.onnx_collapse.operators import attribute, kind_of
from polarprune_export.onnx_collapse.shuffles import end_shuffle, starts_shuffle
from polarprune_export.onnx_collapse.single_nodes import run_node
from polarprune_export.onnx_session import Array

if TYPE_CHECKING:
    from polarprune_export.onnx_collapse.analysis import Analysis

LARGEST_RUN = 1 << 26  # elements; a larger tensor is left alone
# The axis of the result along which a source's axis lies, where nothing else tells (one channel).
_KEEP_AXES = frozenset({"Expand", "Pad", "Slice", "Split", "Tile"})


def move(analysis: "Analysis", node: ir.Node) -> bool:
    """Case 1: a concatenation. Case 2: the last step of a shuffle. Case 3: anything, run on places.

    Where places come out along several axes, ties make them vary along one. Refused: what cannot be
    run, or lays channels along a free side.
    """
    if kind_of(node) == "Concat":
        return _concatenate(analysis, node)
    source = node.inputs[0]
    if source is None or any(value in analysis.spreads for value in node.inputs[1:]):
        return False
    found = analysis.spreads.get(source)
    if found is None:
        return end_shuffle(analysis, node)
    if kind_of(node) == "Reshape" and starts_shuffle(analysis, node, found) is not None:
        return True  # told by the end of the shuffle; until then nothing else looks at it
    if kind_of(node) == "Squeeze" and not _axes_given(node):
        return False  # it would drop the axis of a single channel
    given = analysis.shape(source)
    assert given is not None
    if not _asks_always_alike(analysis, node, found.axis, len(given)):
        return False
    places = run_on_places(analysis, node, given, found.axis, len(found.labels))
    if places is None:
        return False
    moved = []
    for value, result in zip(node.outputs, places, strict=True):
        row = _lay(analysis, node, value, result, found)
        if row is None:
            # Nothing to tell apart any more: what went in there stays.
            used = np.unique(result[result >= 0])
            analysis.read.append(found.positions[used])
            analysis.labels.pin(found.labels[used])
        moved.append(np.zeros(0, dtype=np.int64) if row is None else row)
    analysis.moves[node] = moved
    return True


def _asks_always_alike(analysis: "Analysis", node: ir.Node, axis: int, rank: int) -> bool:
    """Whether what is asked of the channels' axis is the same at all sizes, probed or not.

    A Reshape or Expand is told all sizes, free ones too: there the result's axis tells.
    """
    kind = kind_of(node)
    if kind in ("Split", "Gather"):
        asked = analysis.listed(node, 1, "split")
        return int(attribute(node, "axis", 0)) % rank != axis or None not in (asked or ())
    if kind not in ("Slice", "Pad"):
        return True
    axes = analysis.listed(node, 3, "axes")
    if axes is not None and None in axes:
        return False
    along = [int(a or 0) % rank for a in (range(rank) if axes is None else axes)]
    names = ("starts", "ends", "axes", "steps") if kind == "Slice" else ("pads",)
    for place, name in enumerate(names, start=1):
        asked = analysis.listed(node, place, name) or []
        own = [n for i, n in enumerate(asked) if along[i % len(along)] == axis]
        if None in own:
            return False
    return True


def run_on_places(
    analysis: "Analysis", node: ir.Node, shape: tuple[int, ...], axis: int, count: int
) -> list[Ids] | None:
    """Per output an array of the channel that lies at each of its places; -1 for a pad.

    Args:
        shape: of the first input, whose `axis` has `count` channels.
    """
    if int(np.prod(shape)) > LARGEST_RUN:
        return None
    parameters: list[Array | None] = []
    for index, value in enumerate(node.inputs[1:], start=1):
        number = analysis.number(value)
        if value is not None and (number is None or not analysis.is_settled(value)):
            return None
        if kind_of(node) == "Pad" and index == 2 and number is not None:
            number = np.zeros(number.shape, np.float32)
        parameters.append(number)
    return run_with(analysis, node, places_along(shape, axis, np.arange(count)), parameters)


def places_along(shape: tuple[int, ...], axis: int, places: Ids) -> Array:
    """An array of this shape that holds, at each place, 1 + the number of its channel."""
    along = [-1 if a == axis else 1 for a in range(len(shape))]
    full = np.broadcast_to((places + 1).astype(np.float32).reshape(along), shape)
    return np.ascontiguousarray(full)


def run_with(
    analysis: "Analysis", node: ir.Node, data: Array, parameters: list[Array | None]
) -> list[Ids] | None:
    """The operator on an array of `places_along`, its literal values replaced by zeros."""
    if kind_of(node) == "Pad" and attribute(node, "value", 0.0):
        node = _without_value(node)
    results = run_node(node, [data, *parameters], analysis.constants.opsets)
    if results is None or len(results) != len(node.outputs):
        return None
    return [np.rint(result).astype(np.int64) - 1 for result in results]


def _without_value(node: ir.Node) -> ir.Node:
    kept = {name: a.value for name, a in node.attributes.items() if name != "value"}
    return ir.node(node.op_type, [ir.val("x")], kept, outputs=[ir.val("y")])


def _lay(
    analysis: "Analysis", node: ir.Node, value: ir.Value, result: Ids, found: Spread
) -> Ids | None:
    """Puts a result's labels; its input places along the axis that it got, None if it got none."""
    if kind_of(node) == "Pad":
        return _lay_padded(analysis, node, value, result, found)
    varying = [a for a in range(result.ndim) if (result != result.take([0], axis=a)).any()]
    axis: int | None
    if len(varying) == 1:
        axis = varying[0]
    elif varying:
        axis = _best_axis(result, varying)
    else:
        axis = _axis_of_one(analysis, node, found.axis, result.ndim)
    if axis is None:
        return None
    rows = np.moveaxis(result, axis, 0).reshape(result.shape[axis], -1)
    first = rows[:, 0]
    labels, known = found.labels[first], found.known[first]
    if len(varying) > 1:
        together = np.broadcast_to(rows[:, :1], rows.shape).reshape(-1)
        analysis.labels.tie(found.labels[together], found.labels[rows.reshape(-1)])
        alike = (found.known[rows] == known[:, None]).all(axis=1)
        known = np.where(alike, known, np.nan)
    if not analysis.put(value, axis, labels, known):
        return None
    positions = analysis.spreads[value].positions
    for column in np.unique(rows, axis=1).T if len(varying) > 1 else rows[:, :1].T:
        analysis.flow(node, positions, found.positions[column])
    return np.asarray(first)


def _lay_padded(
    analysis: "Analysis", node: ir.Node, value: ir.Value, result: Ids, found: Spread
) -> Ids | None:
    """Pads before or behind the channels are channels of their own; those of other axes are not.

    These put a number beside a channel's own, which stays known only where it is that number.
    """
    rows = np.moveaxis(result, found.axis, 0).reshape(result.shape[found.axis], -1)
    first = rows.max(axis=1)
    if ((rows != first[:, None]) & (rows >= 0)).any():
        return None
    # Amounts that are computed are perhaps 0 at the probed size alone.
    computed = None in (analysis.listed(node, 1, "pads") or ())
    pads, mixed = first < 0, (rows < 0).any(axis=1) | computed
    number = _pad_number(analysis, node)
    labels = found.labels[first]
    labels[pads] = analysis.labels.new(int(pads.sum()))
    known = found.known[first]
    known[mixed & (known != number)] = np.nan
    known[pads] = number
    if not analysis.put(value, found.axis, labels, known):
        return None
    positions = analysis.spreads[value].positions
    analysis.flow(node, positions[~pads], found.positions[first[~pads]])
    return np.asarray(first)


def _pad_number(analysis: "Analysis", node: ir.Node) -> float:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        number = analysis.constants.array(node.inputs[2])
        return float("nan") if number is None else float(number.reshape(-1)[0])
    return float(attribute(node, "value", 0.0))


def _axis_of_one(analysis: "Analysis", node: ir.Node, axis: int, rank: int) -> int | None:
    """Where a single channel lies in a result, which cannot be seen from its places."""
    given = None if node.inputs[0] is None else analysis.shape(node.inputs[0])
    if kind_of(node) in _KEEP_AXES and given is not None:
        return axis + rank - len(given)
    if kind_of(node) == "Transpose":
        order = attribute(node, "perm")
        return None if order is None else list(order).index(axis)
    return None


def _best_axis(result: Ids, varying: list[int]) -> int | None:
    """The axis whose places share no channel with each other; of several the longest."""
    total = len(np.unique(result))
    best: int | None = None
    for axis in varying:
        rows = np.moveaxis(result, axis, 0).reshape(result.shape[axis], -1)
        apart = sum(len(np.unique(row)) for row in rows) == total
        if apart and (best is None or len(rows) > result.shape[best]):
            best = axis
    return best


def _concatenate(analysis: "Analysis", node: ir.Node) -> bool:
    """Along the channels one after the other; along another axis they meet, and are tied."""
    result = node.outputs[0]
    shape = analysis.shape(result)
    axes = {analysis.spreads[v].axis for v in node.inputs if v in analysis.spreads}
    if shape is None or len(axes) != 1:
        return not axes
    axis, joined = axes.pop(), int(attribute(node, "axis", 1)) % len(shape)
    labels, known, positions = [], [], []
    for index, value in enumerate(node.inputs):
        array = analysis.constants.array(value)
        if array is not None:
            fresh = analysis.labels.new(array.shape[axis])
            analysis.constant_uses.append(ConstantUse(node, index, axis, fresh))
            labels.append(fresh)
            rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
            known.append(np.where((rows == rows[:, :1]).all(axis=1), rows[:, 0], np.nan))
            positions.append(np.full(len(fresh), -1))
            continue
        spread = None if value is None else analysis.along(value, axis)
        if spread is None:
            return False
        labels.append(spread.labels)
        known.append(spread.known)
        positions.append(spread.positions)
    if joined == axis:
        if not analysis.put(result, axis, np.concatenate(labels), np.concatenate(known)):
            return False
        flat = np.concatenate(positions)
        analysis.flow(node, analysis.spreads[result].positions[flat >= 0], flat[flat >= 0])
        return True
    for others in labels[1:]:
        analysis.labels.tie(labels[0], others)
    alike = np.stack(known)
    same = np.where((alike == alike[:1]).all(axis=0), alike[0], np.nan)
    if not analysis.put(result, axis, labels[0], same):
        return False
    for places in positions:
        if (places >= 0).all():
            analysis.flow(node, analysis.spreads[result].positions, places)
    return True


def _axes_given(node: ir.Node) -> bool:
    given = len(node.inputs) > 1 and node.inputs[1] is not None
    return given or attribute(node, "axes") is not None
