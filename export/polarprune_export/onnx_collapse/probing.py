"""The model run once at two sizes: the shape of every value, and which sides stay free."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polarprune.errors import Refused, first_line
from polarprune_export.onnx_session import Array, open_session

if TYPE_CHECKING:
    import onnx

# A free side of an image: the first at which the model runs.
SIDES = (64, 32, 96, 128, 224, 256, 299, 384, 512)
BATCHES = (2, 3)
FREE_CHANNELS = (3, 4)
FREE_LENGTHS = (8, 13)
SMALL = 1024  # elements; smaller constants may be sizes
_SHAPE_OF = "polarprune_shape_of_"

Feeds = dict[str, Array]


@dataclass(frozen=True)
class Probe:
    """What two runs say, per value name.

    `shapes` are those of the first run, `others` those of the second (if there was one); `fixed`
    says per side whether both runs agree on it; `numbers` holds values of type int64 and int32;
    `dtypes` the numpy types.
    """

    shapes: dict[str, tuple[int, ...]]
    others: tuple[dict[str, tuple[int, ...]], ...]
    fixed: dict[str, tuple[bool, ...]]
    numbers: dict[str, Array]
    dtypes: dict[str, "np.dtype[Any]"]

    def agree(self, one: str, other: str) -> bool:
        """Whether two values have the same shape in each run."""
        return all(run[one] == run[other] for run in (self.shapes, *self.others))


@dataclass(frozen=True)
class Free:
    """What free sides are set to; those of an image by axis, in turn."""

    batch: int
    sides: tuple[int, int]
    channels: int = FREE_CHANNELS[0]
    length: int = FREE_LENGTHS[0]

    def size(self, axis: int, rank: int) -> int:
        """Of one free side."""
        if axis == 0:
            return self.batch
        if rank >= 4 and axis >= 2:
            return self.sides[axis % 2]
        return self.channels if axis == 1 and rank >= 3 else self.length


def choose_feeds(model: "onnx.ModelProto", seed: int) -> list[Feeds]:
    """Random inputs at two sizes (at one where nothing is free) with which the model runs.

    Floats are standard normal, uint8 and int8 take their whole range, other integers 0 or 1. A free
    first side is 2 and 3, a free side of an image the first of `SIDES` that runs, then two that
    differ, odd ones where the model takes them: what rounds sizes, or crops, shows there only.

    Raises:
        Refused: an input of unknown rank or of a type that cannot be drawn, or no size that runs.
    """
    session = open_session(model.SerializeToString(), threads=1, optimised=False)
    reason = ""
    first: Feeds | None = None
    side_found = 0
    for side in SIDES:
        feeds = draw_feeds(model, seed, Free(BATCHES[0], (side, side)))
        reason = _failure(session, feeds)
        if not reason:
            first, side_found = feeds, side
            break
    if first is None:
        raise Refused(f"the model does not run on random inputs of any usual size: {reason}")
    tried = []
    for free in _second_sizes(side_found):
        feeds = draw_feeds(model, seed + 1, free)
        shapes = {name: array.shape for name, array in feeds.items()}
        if shapes in tried:
            continue
        tried.append(shapes)
        if not _failure(session, feeds):
            return [first, feeds]
    return [first]


def _second_sizes(side: int) -> Iterator[Free]:
    """In order: odd and different; odd; even, then multiples of 32, of the first side; the same.

    From one run to the next even a 64th of a side changes, where 64 is the first.
    """
    sides = (
        (side + 65, side + 97),
        (side + 65, side + 65),
        (side + 66, side + 98),
        (side + 64, side + 96),
        (2 * side, 3 * side),
        (side + 32, side + 32),
        (2 * side, 2 * side),
        (side, side),
    )
    for pair in sides:
        for channels, length in ((1, 1), (0, 1), (1, 0), (0, 0)):
            yield Free(BATCHES[1], pair, FREE_CHANNELS[channels], FREE_LENGTHS[length])


def draw_feeds(model: "onnx.ModelProto", seed: int, free: Free) -> Feeds:
    """Random inputs with the free sides set; equal symbols get equal sizes."""
    import onnx

    generator = np.random.default_rng(seed)
    inside = {tensor.name for tensor in model.graph.initializer}
    symbols: dict[str, int] = {}
    feeds: Feeds = {}
    for value in model.graph.input:
        if value.name in inside:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise Refused(f"input {value.name!r} has no known rank; give it a shape")
        shape = []
        for axis, dim in enumerate(kind.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                shape.append(dim.dim_value)
                continue
            size = free.size(axis, len(kind.shape.dim))
            shape.append(symbols.setdefault(dim.dim_param, size) if dim.dim_param else size)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds[value.name] = _draw(generator, value.name, np.dtype(dtype), tuple(shape))
    return feeds


def _draw(
    generator: np.random.Generator, name: str, dtype: "np.dtype[Any]", shape: tuple[int, ...]
) -> Array:
    if dtype in (np.float16, np.float32, np.float64):
        return generator.standard_normal(shape).astype(dtype)
    if dtype in (np.uint8, np.int8):
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max + 1, shape).astype(dtype)
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    raise Refused(f"input {name!r} is of type {dtype}, for which no random values can be drawn")


def _failure(session: Any, feeds: Feeds) -> str:
    """Why the model does not run, or nothing."""
    try:
        session.run(None, feeds)
    except Exception as error:  # ONNX Runtime's errors share no base class but this one
        return first_line(error)
    return ""


def probe_model(model: "onnx.ModelProto", feeds: list[Feeds]) -> Probe:
    """Runs the model with `Shape` put behind every value: small answers, whatever the images.

    Raises:
        Refused: ONNX Runtime refuses it.
    """
    import onnx

    types = dict(_types(_inferred(model)))
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    graph = exposed.graph
    del graph.output[:]
    del graph.value_info[:]
    made = [name for node in graph.node for name in node.output if name in types]
    names = [*(value.name for value in model.graph.input), *made]
    asked: list[tuple[str, str]] = []
    for i, name in enumerate(names):
        graph.node.append(onnx.helper.make_node("Shape", [name], [f"{_SHAPE_OF}{i}"]))
        asked.append((name, f"{_SHAPE_OF}{i}"))
    integers = [n for n in made if types[n] in (np.int64, np.int32)]
    for output in (*(o for _, o in asked), *integers):
        graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = open_session(exposed.SerializeToString(), threads=1, optimised=False)
    runs = []
    for one in feeds:
        values = dict(
            zip((o.name for o in session.get_outputs()), session.run(None, one), strict=True)
        )
        runs.append(({n: tuple(int(s) for s in values[o]) for n, o in asked}, values))
    shapes, values = runs[0]
    others = tuple(other for other, _ in runs[1:])
    fixed = {}
    for name, shape in shapes.items():
        found = [other[name] for other in others]
        fixed[name] = tuple(
            all(len(o) == len(shape) and o[a] == size for o in found)
            for a, size in enumerate(shape)
        )
    return Probe(shapes, others, fixed, {n: values[n] for n in integers}, types)


def _inferred(model: "onnx.ModelProto") -> "onnx.GraphProto":
    """The graph with the types of its values; weights are left out of the copies made."""
    import onnx

    light = onnx.ModelProto()
    light.CopyFrom(onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import))
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = "types"
    graph.node.extend(model.graph.node)
    graph.value_info.extend(model.graph.value_info)
    graph.output.extend(model.graph.output)
    known = {value.name for value in model.graph.input}
    graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims)) <= SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    try:
        return onnx.shape_inference.infer_shapes(light).graph
    except Exception:  # an invalid model was refused before; here only types are lost
        return graph


def _types(graph: "onnx.GraphProto") -> "Iterator[tuple[str, np.dtype[Any]]]":
    import onnx

    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
            code = value.type.tensor_type.elem_type
            yield value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    for tensor in graph.initializer:
        yield tensor.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
