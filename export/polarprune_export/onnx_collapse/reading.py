"""An ONNX file in memory, with everything that cannot be collapsed refused in one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from polarprune.errors import Refused, first_line

if TYPE_CHECKING:
    import onnx

SMALLEST_OPSET, LARGEST_OPSET = 9, 25
FILE_LIMIT_BYTES = 2**31 - 1
"""A protobuf message cannot be larger, and what is written is one file."""


def read_model(path: Path) -> "tuple[onnx.ModelProto, bool]":
    """The model with its external data loaded, and whether it had any.

    Raises:
        Refused: no file, no ONNX, an opset or a size out of range, no outputs, sparse tensors, or
            external data outside of the model's own folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.exists():
        raise Refused(f"{path} does not exist; name an ONNX file")
    if not path.is_file():
        raise Refused(f"{path} is no file; name an ONNX file")
    if path.stat().st_size > FILE_LIMIT_BYTES:
        raise Refused(
            f"{path} has {path.stat().st_size} bytes, {FILE_LIMIT_BYTES} are read at most"
        )
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError as error:
        raise Refused(
            f"{path} is no ONNX file, or a truncated one ({first_line(error)}); name another"
        ) from None
    _check_graph(model, path)
    external = load_external(model, path)
    return model, external


def _check_graph(model: "onnx.ModelProto", path: Path) -> None:
    if not model.graph.node or not model.graph.output:
        missing = "outputs" if model.graph.node else "operators"
        raise Refused(f"{path} holds an ONNX graph without {missing}; name another file")
    sparse = sum(len(graph.sparse_initializer) for graph in _graphs(model.graph))
    if sparse:
        raise Refused(
            f"{path} stores sparse tensors ({sparse}), which are not read; store dense ones"
        )
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is None or not SMALLEST_OPSET <= opset <= LARGEST_OPSET:
        raise Refused(
            f"{path} has opset {opset}, {SMALLEST_OPSET} to {LARGEST_OPSET} are known; "
            "convert it with onnx.version_converter"
        )


def load_external(model: "onnx.ModelProto", path: Path) -> bool:
    """Reads external tensors into the model, in place; whether there were any."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    folder = path.resolve().parent
    tensors = [t for t in all_tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    size = path.stat().st_size
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = (folder / location).resolve()
        # Links are followed first: neither `..`, an absolute path nor a link leaves the folder.
        if Path(location).is_absolute() or not file.is_relative_to(folder):
            raise Refused(
                f"{path} wants data from {location!r}, which is outside of its folder; move it in"
            )
        if not file.is_file():
            raise Refused(
                f"{path} wants data from {location!r}, which is not there; put it beside it"
            )
        start, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        end = file.stat().st_size if length < 0 else start + length
        if start < 0 or end > file.stat().st_size:
            raise Refused(
                f"{path} wants bytes {start} to {end} of {location!r}, which is truncated: it has "
                f"{file.stat().st_size}"
            )
        size += end - start
        if size > FILE_LIMIT_BYTES:
            raise Refused(f"{path} and its data take over {FILE_LIMIT_BYTES} bytes; one file holds")
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except (onnx.checker.ValidationError, ValueError, OSError) as error:
            raise Refused(f"{path}: {location!r} cannot be read: {first_line(error)}") from None
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return bool(tensors)


def all_tensors(model: "onnx.ModelProto") -> "Iterator[onnx.TensorProto]":
    """Every tensor of a model, those in attributes, subgraphs and functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graphs(graph: "onnx.GraphProto") -> "Iterator[onnx.GraphProto]":
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _graphs(inner)


def _graph_tensors(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: "onnx.NodeProto") -> "Iterator[onnx.TensorProto]":
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)
