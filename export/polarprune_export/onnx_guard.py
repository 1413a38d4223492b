"""Whether an ONNX file from somebody else may be handed to a library at all.

Parsers and runtimes believe what a file says of itself: that its weights are as large as stated,
that a name leads to a file that is meant, that a stride is not zero. What would make them allocate
without bounds, read other files, run for ever or crash is refused here, in plain Python over the
parsed message, before the checker, shape inference or ONNX Runtime see it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from polarprune.errors import BundleError, quote
from polarprune_export.onnx_memory import largest_tensor

if TYPE_CHECKING:
    import onnx

LARGEST_MODEL = (1 << 31) - 1
"""Bytes: what one protobuf message can hold."""
LONGEST_NAME = 1 << 12
MOST_NODES = 1 << 17
LARGEST_ATTRIBUTE = 1 << 31
"""Magnitude of an integer attribute; the values of a Constant are data and may be larger."""
POSITIVE = {
    *("strides", "dilations", "kernel_shape", "group", "blocksize", "num_outputs", "num_groups"),
    *("size", "hidden_size", "num_heads", "kv_num_heads", "q_num_heads"),
}
"""Attributes that others divide by, or loop over."""
NEVER_NEGATIVE = {"pads", "output_padding", "output_shape"}
STANDARD_DOMAINS = {"", "ai.onnx"}
LARGEST_RANK = 16

# How a tensor's values are stored where they are not raw: field, values of the field an element,
# and bits of an element in raw data.
_STORAGE = {
    "FLOAT": ("float_data", 1, 32),
    "DOUBLE": ("double_data", 1, 64),
    "INT64": ("int64_data", 1, 64),
    "UINT64": ("uint64_data", 1, 64),
    "UINT32": ("uint64_data", 1, 32),
    "INT32": ("int32_data", 1, 32),
    **{name: ("int32_data", 1, 16) for name in ("INT16", "UINT16", "FLOAT16", "BFLOAT16")},
    **{name: ("int32_data", 1, 8) for name in ("INT8", "UINT8", "BOOL")},
    **{
        name: ("int32_data", 1, 8)
        for name in ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")
    },
    **{name: ("int32_data", 0.5, 4) for name in ("INT4", "UINT4")},
}
_DATA_FIELDS = (
    *("float_data", "int32_data", "string_data"),
    *("int64_data", "double_data", "uint64_data"),
)


def guard_model(
    content: bytes, where: str, *, foreign: bool = False
) -> "tuple[onnx.ModelProto, int]":
    """The parsed model, and the bytes of its largest tensor for one image.

    Args:
        content: an ONNX file with all its weights inside.
        where: names it in messages.
        foreign: a file that we did not write: it may hold operators of other domains, functions and
            graphs in graphs, which the export never makes and whose memory is not estimated.

    Raises:
        BundleError: it is no valid ONNX, or would not be safe to load; in one line, why.
    """
    model = _parse(content, where)
    try:
        _check_parts(model, foreign)
        for graph in _graphs(model.graph):
            _check_graph(graph, foreign)
    except ValueError as error:
        raise BundleError(f"{where}: {error}; export again") from None
    _check_valid(model, where, shapes=False)
    largest = largest_tensor(model, where)
    _check_valid(model, where, shapes=True)
    return model, largest


def _parse(content: bytes, where: str) -> "onnx.ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    if len(content) > LARGEST_MODEL:
        raise BundleError(f"{where} has {len(content)} bytes, at most {LARGEST_MODEL} are read")
    try:
        return onnx.load_from_string(content)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(where, error) from None


def _check_valid(model: "onnx.ModelProto", where: str, *, shapes: bool) -> None:
    """The library's own checks, among them that nodes are in order: there is no cycle."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=shapes)
    except Exception as error:  # several unrelated classes, with those of the C++ inside
        raise _invalid(where, error) from None


def _invalid(where: str, error: Exception) -> BundleError:
    words = " ".join(str(error).split())[:200]
    return BundleError(f"{where} is not valid ONNX ({words}); export again")


def _check_parts(model: "onnx.ModelProto", foreign: bool) -> None:
    import onnx

    if not model.HasField("graph"):
        raise ValueError("it holds no graph")
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        _check_name(opset.domain)
        standard = opset.domain in STANDARD_DOMAINS
        if standard and not 1 <= opset.version <= newest:
            raise ValueError(f"opset {opset.version} is none of 1 to {newest}")
        if not standard and not foreign:
            raise ValueError(f"it imports the domain {quote(opset.domain)}, which we never write")
    if model.training_info:
        raise ValueError("it holds training information, which we never write")
    if model.functions and not foreign:
        raise ValueError("it defines functions, which we never write")


def _graphs(graph: "onnx.GraphProto") -> "Iterator[onnx.GraphProto]":
    """The graph, and those inside of its nodes' attributes."""
    left = [graph]
    while left:
        current = left.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                left += [attribute.g] if attribute.HasField("g") else []
                left += attribute.graphs


def _check_graph(graph: "onnx.GraphProto", foreign: bool) -> None:
    _check_name(graph.name)
    if len(graph.node) > MOST_NODES:
        raise ValueError(f"{len(graph.node)} nodes, at most {MOST_NODES} are read")
    if graph.sparse_initializer:
        raise ValueError("it holds sparse weights, which we never write")
    for value in (*graph.input, *graph.output, *graph.value_info):
        _check_value(value, foreign)
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for node in graph.node:
        _check_node(node, foreign)


def _check_value(value: "onnx.ValueInfoProto", foreign: bool) -> None:
    _check_name(value.name)
    if not foreign and not value.type.HasField("tensor_type"):
        raise ValueError(f"{quote(value.name)} is no tensor")
    for side in value.type.tensor_type.shape.dim:
        # The inference of onnx 1.23 aborts the process at a Slice of a negative side.
        if not 0 <= side.dim_value <= LARGEST_ATTRIBUTE:
            raise ValueError(f"{quote(value.name)} has a side of {side.dim_value}")


def _check_node(node: "onnx.NodeProto", foreign: bool) -> None:
    for name in (node.name, node.op_type, node.domain, *node.input, *node.output):
        _check_name(name)
    if not foreign and node.domain not in STANDARD_DOMAINS:
        raise ValueError(f"node {quote(node.name)} is of the domain {quote(node.domain)}")
    for attribute in node.attribute:
        _check_name(attribute.name)
        where = f"{quote(attribute.name)} of node {quote(node.name)}"
        if not foreign and (attribute.HasField("g") or attribute.graphs):
            raise ValueError(f"{where} is a graph in a graph, which we never write")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise ValueError(f"{where} is sparse, which we never write")
        if attribute.HasField("tp") or attribute.type_protos:
            raise ValueError(f"{where} is a type, which we never write")
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            _check_tensor(tensor)
        if node.op_type != "Constant":
            _check_integers(where, attribute)


def _check_integers(where: str, attribute: "onnx.AttributeProto") -> None:
    low = -LARGEST_ATTRIBUTE
    if attribute.name in POSITIVE:
        low = 1
    elif attribute.name in NEVER_NEGATIVE:
        low = 0
    values = list(attribute.ints)
    if attribute.type == attribute.INT:
        values.append(attribute.i)
    for value in values:
        if not low <= value <= LARGEST_ATTRIBUTE:
            raise ValueError(f"{where} is {value}, it must be from {low} to {LARGEST_ATTRIBUTE}")


def _check_tensor(tensor: "onnx.TensorProto") -> None:
    """The values are inside, in one place, and as many as the sizes say."""
    import onnx

    _check_name(tensor.name)
    where = f"the tensor {quote(tensor.name)}"
    if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError(f"{where} is kept in another file, which no digest covers")
    if tensor.HasField("segment"):
        raise ValueError(f"{where} is one segment of several")
    kinds = {number: name for name, number in onnx.TensorProto.DataType.items()}
    kind = kinds.get(tensor.data_type, str(tensor.data_type))
    if kind not in _STORAGE:
        raise ValueError(f"{where} is of the type {kind}, which we never write")
    if len(tensor.dims) > LARGEST_RANK or any(side < 0 for side in tensor.dims):
        raise ValueError(f"{where} has the shape {quote(list(tensor.dims))}")
    elements = 1
    for side in tensor.dims:
        elements *= side
    field, each, bits = _STORAGE[kind]
    filled = [name for name in _DATA_FIELDS if len(getattr(tensor, name))]
    filled += ["raw_data"] if tensor.raw_data else []
    if filled == ["raw_data"]:
        got, wanted = len(tensor.raw_data), -(-elements * bits // 8)
    else:
        got = len(getattr(tensor, field))
        wanted = elements if each == 1 else -(-elements // 2)
    if got != wanted or len(filled) > 1 or (filled and filled[0] not in ("raw_data", field)):
        raise ValueError(
            f"{where} of shape {quote(list(tensor.dims))} and type {kind} holds {got} values or "
            f"bytes in {', '.join(filled) or 'no field'}, it needs {wanted}"
        )


def _check_name(name: str | bytes) -> None:
    # Protobuf hands out bytes where a string is no UTF-8.
    if isinstance(name, bytes) or len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"the name {quote(name)} is too long or cannot be printed")
