"""Operators that do nothing become edges, and computed constants become stored ones.

1. Add (Sum, Sub) with a side of zeros: the other side. Of an Add this is a dead block.
2. Mul, Div by ones: the other side.
3. Relu of a Relu; Identity; a concatenation or split of one; a slice, pad or pick of everything.
4. An operand of an element-wise operator that holds a known number in each channel: a stored
   (c, 1, 1), so that nothing needs to compute it.

Only where the result has the shape of what takes its place, at both probed sizes. Of a movement
that alone proves nothing for other sizes: its parameters have to say that it takes everything.
Exactness: bitwise, but for 4, which is rounding in the last bit of a constant.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.analysis import Analysis
from polarprune_export.onnx_collapse.operators import ELEMENTWISE, attribute, kind_of
from polarprune_export.onnx_collapse.stored import Store

PAST_ANY_END = 2**31 - 1
_SUMS = frozenset({"Add", "Sum"})


@dataclass
class Simplified:
    """How many nodes became edges, how many of them were additions, how many constants stored."""

    edges: int = 0
    blocks: int = 0
    stored: int = 0


def simplify_edges(model: ir.Model, analysis: Analysis) -> Simplified:
    """Applies all four cases once, in place."""
    done = Simplified()
    # Decided before anything changes: the analysis knows values by their names.
    found = [(node, _idle(analysis, node)) for node in model.graph]
    computed = [
        (node, index) for node in model.graph for index in _computed_constants(analysis, node)
    ]
    store = Store(model)
    passing = {node for node, index in found if index is not None}
    for node, index in computed:
        if node not in passing:
            _store(analysis, store, node, index)
            done.stored += 1
    for node, taken in found:
        # Asked before: a removed node has no inputs left.
        stored = any(analysis.constants.array(value) is not None for value in node.inputs)
        if taken is not None and _bypass(model.graph, node, taken):
            done.edges += 1
            done.blocks += kind_of(node) in _SUMS and not stored
    return done


def _holds(analysis: Analysis, value: ir.Value | None, number: float) -> bool:
    array = analysis.constants.array(value)
    if array is not None:
        return array.dtype.kind in "fiV" and bool((array == number).all())
    spread = analysis.spreads.get(value) if value is not None else None
    return spread is not None and bool((spread.known == number).all())


def _same_shape(analysis: Analysis, value: ir.Value | None, result: ir.Value) -> bool:
    if (
        value is None
        or analysis.shape(value) is None
        or analysis.constants.array(value) is not None
    ):
        return False
    if analysis.shape(result) is None:
        return False
    return analysis.probe.agree(str(value.name), str(result.name))


def _idle(analysis: Analysis, node: ir.Node) -> int | None:
    """The input that the node's result is equal to, None where it does something."""
    kind, result = kind_of(node), node.outputs[0]
    if not node.inputs or len([v for v in node.outputs if v.uses() or v.is_graph_output()]) != 1:
        return None
    if kind in ("Add", "Sub", "Mul", "Div", "Sum") and len(node.inputs) == 2:
        neutral = 1.0 if kind in ("Mul", "Div") else 0.0
        for index in (0,) if kind in ("Sub", "Div") else (0, 1):
            other = node.inputs[1 - index]
            if _holds(analysis, other, neutral) and _same_shape(
                analysis, node.inputs[index], result
            ):
                return index
        return None
    source = node.inputs[0]
    if source is None or not _same_shape(analysis, source, result):
        return None
    if kind == "Relu":
        before = source.producer()
        return 0 if before is not None and kind_of(before) == "Relu" else None
    if kind == "Identity" or (kind == "Concat" and len(node.inputs) == 1):
        return 0
    return 0 if _takes_all(analysis, node) else None


def _takes_all(analysis: Analysis, node: ir.Node) -> bool:
    """A movement whose parameters say, whatever the size, that it moves nothing."""
    kind = kind_of(node)
    if kind == "Split":
        return len(node.outputs) == 1
    if kind == "Slice":
        return _slices_all(analysis, node)
    if kind == "Pad":
        amounts = attribute(node, "pads")
        if amounts is None and len(node.inputs) > 1:
            amounts = analysis.constants.array(node.inputs[1])
        return amounts is not None and not np.any(amounts)
    if kind == "Gather":
        indices = analysis.constants.array(node.inputs[1])
        shape = analysis.shape(node.outputs[0])
        if indices is None or indices.ndim != 1 or shape is None:
            return False
        size = shape[int(attribute(node, "axis", 0)) % len(shape)]
        return bool(np.array_equal(indices, np.arange(size)))
    return False


def _slices_all(analysis: Analysis, node: ir.Node) -> bool:
    """From 0 in steps of 1 to past any end, or to the end of a side that is fixed."""
    source = node.inputs[0]
    shape = None if source is None else analysis.shape(source)
    if source is None or shape is None:
        return False
    names = ("starts", "ends", "axes", "steps")
    given = [analysis.listed(node, index, name) for index, name in enumerate(names, start=1)]
    starts, ends, axes, steps = given
    if starts is None or ends is None or None in (*starts, *ends, *(axes or ()), *(steps or ())):
        return False
    along = range(len(starts)) if axes is None else axes
    fixed = analysis.probe.fixed[str(source.name)]
    for axis, start, end, step in zip(along, starts, ends, steps or [1] * len(starts), strict=True):
        assert axis is not None
        assert end is not None
        if start != 0 or step != 1:
            return False
        place = int(axis) % len(shape)
        if end < PAST_ANY_END and not (fixed[place] and end >= shape[place]):
            return False
    return True


def _bypass(graph: ir.Graph, node: ir.Node, index: int) -> bool:
    """Lets all that read the node's result read its source; outputs keep their names."""
    result = next((v for v in node.outputs if v.uses() or v.is_graph_output()), None)
    source = node.inputs[index]
    if result is None or source is None:
        return False  # a constant that was stored has left it without readers
    if any(user.graph is not graph for user, _ in result.uses()):
        return False  # read inside of a subgraph, perhaps as its output
    if result.is_graph_output():
        producer = source.producer()
        if producer is None or source.is_graph_output() or producer.graph is not graph:
            return False
        if any(user.graph is not graph for user, _ in source.uses()):
            return False
        name = result.name
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        result.name, source.name = f"{name}_gone", name
        source.shape, source.type = result.shape, result.type
    else:
        result.replace_all_uses_with(source)
    graph.remove(node, safe=True)
    return True


def _computed_constants(analysis: Analysis, node: ir.Node) -> list[int]:
    """The inputs of an element-wise node that can be stored, another one giving the shape."""
    result = node.outputs[0] if node.outputs else None
    if kind_of(node) not in ELEMENTWISE or result is None or len(node.inputs) < 2:
        return []
    known = []
    for index, value in enumerate(node.inputs):
        spread = analysis.spreads.get(value) if value is not None else None
        computed = value is not None and analysis.constants.array(value) is None
        if computed and spread is not None and not np.isnan(spread.known).any():
            known.append(index)
    left = [v for i, v in enumerate(node.inputs) if i not in known]
    return known if any(_same_shape(analysis, value, result) for value in left) else []


def _store(analysis: Analysis, store: Store, node: ir.Node, index: int) -> None:
    value = node.inputs[index]
    assert value is not None
    spread, shape = analysis.spreads[value], analysis.shape(value)
    assert shape is not None
    dtype = analysis.probe.dtypes[str(value.name)]
    array = spread.known.astype(dtype).reshape(-1, *[1] * (len(shape) - spread.axis - 1))
    node.replace_input_with(index, store.new(f"{value.name}_constant", array))
