"""What operators that move data are written with for fewer channels, decided before any change.

Each plan is run on the places of the channels that stay, and has to give what the old operator's
result keeps; where it does not, or cannot be written, the operator's channels stay whole.
"""

import numpy as np
import onnx_ir as ir

from polarprune_export.onnx_collapse.analysis import Analysis
from polarprune_export.onnx_collapse.edits import CannotBeWritten, Edit, asked_sizes, rewritten
from polarprune_export.onnx_collapse.labels import Ids
from polarprune_export.onnx_collapse.movement import places_along, run_on_places, run_with
from polarprune_export.onnx_collapse.needs import Needs
from polarprune_export.onnx_collapse.operators import attribute, kind_of
from polarprune_export.onnx_session import Array


def plan_move(needs: Needs, node: ir.Node) -> Edit:
    """The edit of a node in `analysis.moves` of which some channels go.

    Raises:
        CannotBeWritten: there is none.
    """
    analysis, kind = needs.analysis, kind_of(node)
    source = node.inputs[0]
    assert source is not None
    edit = Edit()
    if kind in ("Reshape", "Expand"):
        _sizes(needs, node, edit)
    elif kind == "Slice":
        _slice(needs, node, edit)
    elif kind == "Split":
        _split(needs, node, edit)
    elif kind == "Pad":
        _pad(needs, node, edit)
    elif kind == "Gather":
        _gather(needs, node, edit)
    if edit.picked is None:
        _rehearse(needs, analysis, node, edit)
    return edit


def plan_resize(needs: Needs, node: ir.Node) -> Edit:
    """A Resize that is told all sizes is told the new number of channels."""
    edit = Edit()
    result = node.outputs[0]
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axis = needs.analysis.spreads[result].axis
        shape = needs.analysis.shape(result)
        assert shape is not None
        axes = [a % len(shape) for a in attribute(node, "axes", range(len(shape)))]
        if axis in axes:
            edit.elements[3] = {axes.index(axis): int(needs.kept(result).sum())}
    return edit


def _sizes(needs: Needs, node: ir.Node, edit: Edit) -> None:
    analysis = needs.analysis
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if result not in analysis.spreads:
        return
    spread, shape = analysis.spreads[result], analysis.shape(result)
    assert shape is not None
    asked = asked_sizes(analysis, node)
    place = spread.axis - len(shape) + len(asked)
    if place < 0 or asked[place] == -1:
        return
    if kind_of(node) == "Expand":
        if asked[place] == 1:
            return
    elif asked[place] == 0 and analysis.spreads[source].axis == spread.axis:
        return  # copied from the source
    lasting = analysis.listed(node, 1, "shape")
    if lasting is None or lasting[place] is None:
        raise CannotBeWritten  # as many as there are channels at the probed sizes alone
    edit.elements[1] = {place: int(needs.kept(result).sum())}


def _new_places(needs: Needs, node: ir.Node) -> Ids:
    """Of the channels that the result keeps, their places among those that the source keeps."""
    source = node.inputs[0]
    assert source is not None
    kept = needs.kept(source)
    places = needs.analysis.moves[node][0][needs.kept(node.outputs[0])]
    return np.asarray((np.cumsum(kept) - 1)[places])


def _slice(needs: Needs, node: ir.Node, edit: Edit) -> None:
    analysis = needs.analysis
    source = node.inputs[0]
    assert source is not None
    axis = analysis.spreads[source].axis
    shape = analysis.shape(source)
    assert shape is not None
    by_input = len(node.inputs) > 1
    given = [analysis.number(v) for v in node.inputs[1:]]
    if by_input:
        starts = given[0]
        axes = given[2] if len(given) > 2 and node.inputs[3] is not None else None
    else:
        starts, axes = np.array(attribute(node, "starts")), attribute(node, "axes")
    if starts is None:
        raise CannotBeWritten
    along = [int(a) % len(shape) for a in (range(len(starts)) if axes is None else axes)]
    if axis not in along:
        return
    if not analysis.moves[node][0].size:
        raise CannotBeWritten  # its channels could not be told apart
    place, places = along.index(axis), _new_places(needs, node)
    if len(places) and not np.array_equal(places, np.arange(places[0], places[0] + len(places))):
        if len(along) > 1:
            raise CannotBeWritten
        edit.picked = (node, axis, places)
        return
    low, high = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
    if by_input:
        edit.elements[1], edit.elements[2] = {place: low}, {place: high}
        return
    for name, number in (("starts", low), ("ends", high)):
        edit.attributes[name] = list(attribute(node, name))
        edit.attributes[name][place] = number  # type: ignore[index]


def _split(needs: Needs, node: ir.Node, edit: Edit) -> None:
    analysis = needs.analysis
    source = node.inputs[0]
    assert source is not None
    shape = analysis.shape(source)
    assert shape is not None
    if int(attribute(node, "axis", 0)) % len(shape) != analysis.spreads[source].axis:
        return
    counts = []
    for output, value in enumerate(node.outputs):
        if value not in analysis.spreads:
            raise CannotBeWritten
        count = int(needs.kept(value).sum())
        if count:
            counts.append(count)
            continue
        if value.is_graph_output() or any(user in needs.live for user, _ in value.uses() if
                                          kind_of(user) != "Concat"):  # fmt: skip
            raise CannotBeWritten
        edit.dropped.append(output)
    if analysis.constants.opsets.get("", 0) >= 13:
        edit.constants[1] = np.array(counts, np.int64)
        edit.attributes["num_outputs"] = None
    else:
        edit.attributes["split"] = counts


def _pad(needs: Needs, node: ir.Node, edit: Edit) -> None:
    analysis = needs.analysis
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if result not in analysis.spreads:
        return
    shape, axis = analysis.shape(source), analysis.spreads[source].axis
    assert shape is not None
    amounts = attribute(node, "pads")
    if amounts is None:
        amounts = asked_sizes(analysis, node)
    given = analysis.number(node.inputs[3]) if len(node.inputs) > 3 else None
    axes = [int(a) % len(shape) for a in (range(len(shape)) if given is None else given)]
    if axis not in axes:
        return
    place = axes.index(axis)
    before, after = int(amounts[place]), int(amounts[place + len(axes)])
    if before < 0 or after < 0:
        raise CannotBeWritten
    kept = needs.kept(result)
    counts: dict[int, float] = {
        place: int(kept[:before].sum()),
        place + len(axes): int(kept[len(kept) - after :].sum()),
    }
    if attribute(node, "pads") is None:
        changed = {i: count for i, count in counts.items() if count != int(amounts[i])}
        edit.elements |= {1: changed} if changed else {}
    else:
        edit.attributes["pads"] = [int(counts.get(i, int(a))) for i, a in enumerate(amounts)]


def _gather(needs: Needs, node: ir.Node, edit: Edit) -> None:
    analysis = needs.analysis
    source = node.inputs[0]
    assert source is not None
    shape, spread = analysis.shape(source), analysis.spreads[source]
    assert shape is not None
    if int(attribute(node, "axis", 0)) % len(shape) != spread.axis:
        return
    indices = analysis.constants.array(node.inputs[1])
    if indices is None or indices.ndim > 1:
        raise CannotBeWritten
    if analysis.moves[node][0].size:
        edit.constants[1] = _new_places(needs, node).astype(indices.dtype)
        return
    rank = np.cumsum(needs.kept(source)) - 1
    edit.constants[1] = rank[indices].astype(indices.dtype).reshape(indices.shape)


def _rehearse(needs: Needs, analysis: Analysis, node: ir.Node, edit: Edit) -> None:
    """Runs old and new on places; raises CannotBeWritten where they differ."""
    source = node.inputs[0]
    assert source is not None
    spread, shape = analysis.spreads[source], analysis.shape(source)
    assert shape is not None
    kept = needs.kept(source)
    old = run_on_places(analysis, node, shape, spread.axis, len(kept))
    parameters: list[Array | None] = []
    for index, value in enumerate(node.inputs[1:], start=1):
        number = analysis.number(value)
        if index in edit.constants:
            number = edit.constants[index]
        elif number is not None and index in edit.elements:
            number = number.copy()
            for place, size in edit.elements[index].items():
                number[place] = size
        elif number is not None and kind_of(node) == "Pad" and index == 2:
            number = np.zeros(number.shape, np.float32)
        parameters.append(number)
    if 1 in edit.constants and len(node.inputs) < 2:
        parameters.append(edit.constants[1])
    fewer = (*shape[: spread.axis], int(kept.sum()), *shape[spread.axis + 1 :])
    data = places_along(fewer, spread.axis, np.flatnonzero(kept))
    new = run_with(analysis, rewritten(node, edit), data, parameters)
    if old is None or new is None:
        raise CannotBeWritten
    left = [i for i in range(len(node.outputs)) if i not in edit.dropped]
    for i, got in zip(left, new, strict=True):
        wanted = old[i]
        if node.outputs[i] in analysis.spreads:
            found = analysis.spreads[node.outputs[i]]
            wanted = wanted.compress(needs.kept(node.outputs[i]), axis=found.axis)
        if not np.array_equal(got, wanted):
            raise CannotBeWritten
