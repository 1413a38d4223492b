"""`collapse_onnx`: from a file with zeros in it to a smaller file that computes the same."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from polarprune.errors import Refused, first_line
from polarprune_export.onnx_collapse.analysis import Analysis
from polarprune_export.onnx_collapse.checking import check_outputs, tolerance_for
from polarprune_export.onnx_collapse.constants import (
    FIRST_IR_WITH_DEFAULTS,
    Constants,
    not_looked_into,
)
from polarprune_export.onnx_collapse.counting import Counts, count_graph
from polarprune_export.onnx_collapse.cutting import cut_graph, plan_edits
from polarprune_export.onnx_collapse.edges import simplify_edges
from polarprune_export.onnx_collapse.needs import find_needs
from polarprune_export.onnx_collapse.probing import Feeds, Probe, choose_feeds, probe_model
from polarprune_export.onnx_collapse.reading import FILE_LIMIT_BYTES, read_model
from polarprune_export.onnx_session import require_onnxruntime

if TYPE_CHECKING:
    import onnx

SEED = 0
ROUNDS = 100
"""Each one removes something; deep networks were seen to take four."""


@dataclass(frozen=True)
class CollapseReport:
    """What was removed and how exactly.

    Attributes:
        onnx: the file written.
        changed: False where there was nothing to remove; the file is then a copy.
        nodes, channels, params, macs, bytes: before and after; channels are the outputs of all
            convolutions and matrix products, macs those of one image of the size of `inputs`.
        blocks_removed: additions of which one side was zero.
        max_rel_error: the largest error of all outputs over the largest value of its output.
        inputs: shapes of the random inputs of the check, at each size.
        pinned: why channels had to stay whole, in words.
    """

    onnx: str
    changed: bool
    nodes: tuple[int, int]
    channels: tuple[int, int]
    blocks_removed: int
    params: tuple[int, int]
    macs: tuple[int, int]
    bytes: tuple[int, int]
    max_rel_error: float
    tolerance: float
    inputs: tuple[dict[str, tuple[int, ...]], ...]
    opset: int
    pinned: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: pairs become `dense_...` (before) and the plain name (after)."""
        document = asdict(self)
        for name in ("nodes", "channels", "params", "macs", "bytes"):
            document[f"dense_{name}"], document[name] = document.pop(name)
        document["macs_ratio"] = self.macs[1] / self.macs[0] if self.macs[0] else None
        return document


def collapse_onnx(in_path: Path | str, out_path: Path | str) -> CollapseReport:
    """Takes dead channels and dead blocks out of an ONNX file, and shows that nothing else changed.

    Filters, gates, scales and weight columns of zero are followed through the graph; what no output
    needs goes: filters, their readers' columns, whole operators, blocks behind an addition. Opset,
    names of inputs and outputs, metadata and free sides stay. A collapsed file comes back as it is.

    Args:
        in_path: ONNX of opset 9 to 25, its external data (if any) in its own folder.
        out_path: one file, written whole or not at all.

    Raises:
        Refused: not an ONNX file that can be read and run, or no place to write to.
        ParityError: the two files differ by more than `tolerance`; nothing is written.
        BackendUnavailable: ONNX Runtime, which does the comparing, is not installed.

    Exactness: rounding; per output at most 1e-5 of its largest value in float32 (1e-2 in float16,
        2e-2 behind a QuantizeLinear), on random inputs of two sizes. Values are taken to be finite:
        0 x inf counts as 0.
    Source: ours.
    """
    source, target = Path(in_path), Path(out_path)
    require_onnxruntime()
    given, external = read_model(source)
    _check_target(source, target)
    feeds = choose_feeds(given, SEED)
    before = given.SerializeToString()
    model = ir.from_proto(given)
    dense = count_graph(model, probe_model(given, feeds), feeds[0])
    outcome = _collapse(model, feeds)
    content = before if external else source.read_bytes()
    if outcome.changed:
        content = ir.to_proto(model).SerializeToString(deterministic=True)
        if len(content) > FILE_LIMIT_BYTES:
            raise Refused(f"the result takes {len(content)} bytes, {FILE_LIMIT_BYTES} are the most")
    tolerance = tolerance_for(given, probe_model(given, feeds[:1]))
    comparison = check_outputs(before, content, feeds, tolerance)
    _write(target, content)
    small = outcome.counts
    return CollapseReport(
        onnx=str(target),
        changed=outcome.changed,
        nodes=(dense.nodes, small.nodes),
        channels=(dense.channels, small.channels),
        blocks_removed=outcome.blocks,
        params=(dense.params, small.params),
        macs=(dense.macs, small.macs),
        bytes=(len(before), len(content)),
        max_rel_error=comparison.max_rel_error,
        tolerance=tolerance,
        inputs=tuple({name: array.shape for name, array in one.items()} for one in feeds),
        opset=next(o.version for o in given.opset_import if o.domain in ("", "ai.onnx")),
        pinned=outcome.pinned,
    )


@dataclass(frozen=True)
class _Outcome:
    changed: bool
    blocks: int
    counts: Counts
    pinned: tuple[str, ...]


def _collapse(model: ir.Model, feeds: list[Feeds]) -> _Outcome:
    """Analyse, simplify or cut, and look again, until nothing is left to do; in place."""
    changed, blocks = remove_dead(model), 0
    stuck: set[ir.Node] = set()
    for _ in range(ROUNDS):
        probe = probe_model(_proto(model), feeds)
        analysis = Analysis(model, probe, Constants(model), stuck)
        simplified = simplify_edges(model, analysis)
        if simplified.edges or simplified.stored:
            blocks += simplified.blocks
            changed, stuck = True, set()
            remove_dead(model)
            continue
        needs = find_needs(analysis)
        edits, more = plan_edits(needs)
        if more:
            stuck |= more
            continue
        if not any(needs.is_cut(v) for node in needs.live for v in (*node.inputs, *node.outputs)):
            _state_shapes(model, probe)
            counts = count_graph(model, probe, feeds[0])
            pinned = (*not_looked_into(model), *analysis.pinned)
            return _Outcome(changed, blocks, counts, pinned)
        cut_graph(model, needs, edits)
        changed, stuck = True, set()  # what could not be written may be, of what is left
        remove_dead(model)
    raise Refused(f"the graph is not done after {ROUNDS} rounds; report this with the file")


def _state_shapes(model: ir.Model, probe: Probe) -> None:
    """Sizes that the file states for values in between become those of the smaller graph."""
    for node in model.graph:
        for value in node.outputs:
            found = probe.shapes.get(str(value.name))
            if found is None or value.shape is None or len(value.shape) != len(found):
                continue
            stated = list(value.shape.dims)
            sizes = [
                new if isinstance(old, int) else old for old, new in zip(stated, found, strict=True)
            ]
            if sizes != stated:
                value.shape = ir.Shape(sizes)


def _proto(model: ir.Model) -> "onnx.ModelProto":
    return ir.to_proto(model)


def remove_dead(model: ir.Model) -> bool:
    """Removes nodes without readers and tensors that nobody reads; whether there were any."""
    graph, found = model.graph, False
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
            found = True
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            if value.is_graph_input():
                if model.ir_version >= FIRST_IR_WITH_DEFAULTS:
                    continue  # somebody may feed it
                graph.inputs.remove(value)
            del graph.initializers[name]
            found = True
    return found


def _check_target(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        raise Refused(f"{target} is the file to read; name another one to write")
    if target.is_dir():
        raise Refused(f"{target} is a folder; name a file to write")
    if not target.parent.is_dir():
        raise Refused(f"{target.parent} is no folder; make it, or name another file to write")


def _write(target: Path, content: bytes) -> None:
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, target)
    except OSError as error:
        raise Refused(
            f"{target} cannot be written ({error.strerror or first_line(error)}); name another file"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
