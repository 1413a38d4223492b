"""Channels that nobody needs are cut out of weights, parameters and sizes."""

from functools import partial

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.analysis import Analysis
from polarprune_export.onnx_collapse.edits import CannotBeWritten, Edit, rewritten
from polarprune_export.onnx_collapse.labels import Mask
from polarprune_export.onnx_collapse.mixes import Mix
from polarprune_export.onnx_collapse.moving_cut import plan_move, plan_resize
from polarprune_export.onnx_collapse.needs import Needs, drops
from polarprune_export.onnx_collapse.operators import attribute, kind_of
from polarprune_export.onnx_collapse.shuffles import plan_shuffle
from polarprune_export.onnx_collapse.stored import Store
from polarprune_export.onnx_session import Array


def plan_edits(needs: Needs) -> tuple[dict[ir.Node, Edit], set[ir.Node]]:
    """Per node its new parameters, and the nodes that cannot be written for fewer channels."""
    edits: dict[ir.Node, Edit] = {}
    stuck: set[ir.Node] = set()
    for node in needs.analysis.graph:
        if node not in needs.live or not any(map(needs.is_cut, (*node.inputs, *node.outputs))):
            continue
        try:
            if node in needs.analysis.moves:
                edits[node] = plan_move(needs, node)
            elif node in needs.analysis.shuffles:
                edits |= plan_shuffle(needs, node)
            elif kind_of(node) == "Resize":
                edits[node] = plan_resize(needs, node)
        except CannotBeWritten:
            stuck.add(node)
    _write_sizes_out(needs, edits)
    return edits, stuck


def _write_sizes_out(needs: Needs, edits: dict[ir.Node, Edit]) -> None:
    """Numbers that were read from a channel axis which is cut become what they were."""
    analysis = needs.analysis
    for node in analysis.graph:
        for index in range(len(node.inputs)):
            numbers = analysis.sizes.used(node, index)
            if numbers is None or node not in needs.live:
                continue
            changing = {
                place: element.number
                for place, element in enumerate(numbers.elements)
                if element.number is not None
                and any(
                    needs.is_cut(value) and analysis.spreads[value].axis == axis
                    for value, axis in element.sides
                )
            }
            if changing:
                edit = edits.setdefault(node, Edit())
                edit.elements[index] = changing | edit.elements.get(index, {})


def cut_graph(model: ir.Model, needs: Needs, edits: dict[ir.Node, Edit]) -> None:
    """Cuts everything, in place.

    Exactness: rounding; sums lose terms that are zero, biases gain constants.
    """
    analysis, store = needs.analysis, Store(model)
    for step in analysis.steps:
        if isinstance(step, Mix) and step.node in needs.live:
            _cut_mix(needs, store, step)
    for use in analysis.constant_uses:
        kept = needs.present[use.labels]
        if use.node in needs.live and not kept.all() and kept.any():
            places, axis = np.flatnonzero(kept), use.axis
            take = partial(np.take, indices=places, axis=axis)
            store.cut(use.node, use.index, take, {axis: places})
    empty = {
        (use.node, use.index)
        for use in analysis.constant_uses
        if not needs.present[use.labels].any()
    }
    for node in list(analysis.graph):
        if node in needs.live and kind_of(node) == "Concat":
            _drop_operands(needs, node, empty)
    for node, edit in edits.items():
        _apply(analysis, store, node, edit)


def _cut_mix(needs: Needs, store: Store, mix: Mix) -> None:
    node = mix.node
    kind = kind_of(node)
    kept_out = needs.kept(node.outputs[0])
    whole = np.ones(mix.shape[1], dtype=bool)
    kept_in = whole if mix.inputs is None else needs.kept(mix.source)
    if kept_in.all() and kept_out.all():
        return
    rows_are_inputs = kind in ("ConvTranspose", "MatMul") or (
        kind == "Gemm" and not attribute(node, "transB", 0)
    )
    rows, columns = (kept_in, kept_out) if rows_are_inputs else (kept_out, kept_in)
    axes = {0: np.flatnonzero(rows), 1: np.flatnonzero(columns)}
    store.cut(node, 1, lambda array: cut_weight(array, mix.groups, rows, columns), axes)
    if mix.groups > 1:
        left = int(kept_out.reshape(mix.groups, -1).any(axis=1).sum())
        node.attributes["group"] = ir.AttrInt64("group", left)
    _cut_bias(needs.analysis, store, mix, kept_in, kept_out)


def cut_weight(weight: Array, groups: int, rows: Mask, columns: Mask) -> Array:
    """Weights (rows, columns / groups, ...) of the rows that stay, of their groups' columns."""
    if groups == 1:
        cut: Array = weight[rows][:, columns]
        return cut
    per_group = columns.reshape(groups, -1)
    each = len(rows) // groups
    return np.stack([weight[r][per_group[r // each]] for r in np.flatnonzero(rows)])


def _cut_bias(analysis: Analysis, store: Store, mix: Mix, kept_in: Mask, kept_out: Mask) -> None:
    """The outputs that stay, with what constant inputs that go have contributed."""
    node = mix.node
    folded = mix.contribution(~kept_in)
    given = node.inputs[2] if len(node.inputs) > 2 else None
    places = np.flatnonzero(kept_out)
    if not folded[kept_out].any():
        array = analysis.constants.array(given)
        if array is not None and array.size > 1:
            axis = array.ndim - 1
            store.cut(node, 2, lambda array: array.take(places, axis=-1), {axis: places})
        return
    weight, values = node.inputs[1], analysis.constants.array(node.inputs[1])
    assert weight is not None
    assert values is not None
    beta = float(attribute(node, "beta", 1.0)) if kind_of(node) == "Gemm" else 1.0
    bias = ((mix.bias + folded) / beta)[kept_out].astype(values.dtype)
    if given is not None:
        store.put(node, 2, bias)
        return
    name = weight.name if weight.name else node.name
    node.resize_inputs(3)
    node.replace_input_with(2, store.new(f"{name}_bias", bias))


def _drop_operands(needs: Needs, node: ir.Node, empty: set[tuple[ir.Node, int]]) -> None:
    """A concatenation without its empty operands."""
    left = [
        value
        for index, value in enumerate(node.inputs)
        if value is None
        or not ((node, index) in empty or drops(needs.analysis, needs.present, node, value))
    ]
    if len(left) == len(node.inputs):
        return
    for index, value in enumerate(left):
        node.replace_input_with(index, value)
    node.resize_inputs(len(left))


def _apply(analysis: Analysis, store: Store, node: ir.Node, edit: Edit) -> None:
    if edit.picked is not None:
        reader, axis, places = edit.picked
        source, result = reader.inputs[0], node.outputs[0]
        assert source is not None
        picked = store.gather(node, source, axis, places)
        picked.shape, picked.type = result.shape, result.type
        name, is_output = result.name, result.is_graph_output()
        result.replace_all_uses_with(picked, replace_graph_outputs=is_output)
        if is_output:
            result.name, picked.name = f"{name}_gone", name
        return
    for index, elements in edit.elements.items():
        _apply_elements(analysis, store, node, index, elements)
    if edit.dropped or any(edit.attributes.values()) or "num_outputs" in edit.attributes:
        node = _replace(analysis.graph, node, edit)
    for index, array in edit.constants.items():
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        if node.inputs[index] is None:
            node.replace_input_with(index, store.new(f"{node.name}_sizes", array))
        else:
            store.put(node, index, array)


def _apply_elements(
    analysis: Analysis, store: Store, node: ir.Node, index: int, elements: dict[int, float]
) -> None:
    """Elements of a constant list change in it; of a computed one they are put in its place."""
    value = node.inputs[index]
    assert value is not None
    constant = analysis.constants.array(value)
    if constant is not None:
        changed = constant.copy()
        for place, size in elements.items():
            changed[place] = size
        if not np.array_equal(changed, constant):
            store.put(node, index, changed)
        return
    tracked, number = analysis.sizes.found.get(value), analysis.number(value)
    dtype = analysis.probe.dtypes.get(str(value.name), np.dtype(np.int64))
    if tracked is not None and tracked.scalar:
        node.replace_input_with(
            index, store.new(f"{value.name}_size", np.array(elements[0], dtype))
        )
        return
    length = len(tracked.elements) if tracked is not None else 0 if number is None else len(number)
    store.write_elements(node, index, elements, length, dtype)


def _replace(graph: ir.Graph, node: ir.Node, edit: Edit) -> ir.Node:
    """The node as edited, in the old one's place, its results under their old names."""
    twin = rewritten(node, edit)
    twin.name = node.name
    for index, value in enumerate(node.inputs):
        twin.replace_input_with(index, value)
    left = [value for i, value in enumerate(node.outputs) if i not in edit.dropped]
    graph.insert_before(node, twin)
    for old, new in zip(left, twin.outputs, strict=True):
        name, is_output = old.name, old.is_graph_output()
        new.shape, new.type = old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=is_output)
        old.name, new.name = f"{name}_gone", name
    return twin
