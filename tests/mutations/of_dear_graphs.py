"""Graphs that cost too much or are like none of ours: sizes, loops, graphs in graphs, any field."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.mutations.graph_parts import add_to_logits, constant, on_model
from tests.mutations.registry import (
    MODEL,
    flip_bits,
    forged,
    read_document,
    write_document,
)


@on_model()
def ten_gigabytes_out_of_nothing(random: Random, model: onnx.ModelProto) -> None:
    huge = np.array([50_000, 50_000], np.int64)
    what = random.randrange(8)
    make = helper.make_node
    if what == 0:
        node = make("ConstantOfShape", [constant(model, "shape", huge)], ["big"], "big")
    elif what == 1:
        one = constant(model, "one", np.ones((1, 1), np.float32))
        node = make("Expand", [one, constant(model, "shape", huge)], ["big"], "big")
    elif what == 2:
        one = constant(model, "one", np.ones((1, 1), np.float32))
        node = make("Tile", [one, constant(model, "shape", huge)], ["big"], "big")
    elif what == 3:
        pads = constant(model, "pads", np.array([0, 0, 50_000, 50_000], np.int64))
        node = make("Pad", ["m", pads], ["big"], "big")
    elif what == 4:
        scales = constant(model, "scales", np.array([1, 1, 20_000, 20_000], np.float32))
        node = make("Resize", ["p", "", scales], ["big"], "big")
    elif what == 5:
        names = [constant(model, f"range_{i}", np.int64(v)) for i, v in enumerate((0, 10**10, 1))]
        node = make("Range", names, ["big"], "big")
    elif what == 6:
        depth = constant(model, "depth", np.int64(10**8))
        values = constant(model, "values", np.array([0, 1], np.float32))
        indices = constant(model, "indices", np.zeros(100, np.int64))
        node = make("OneHot", [indices, depth, values], ["big"], "big")
    else:
        node = make("RandomNormal", [], ["big"], "big", shape=[50_000, 50_000])
    add_to_logits(model, node)


@on_model()
def a_size_that_is_computed(random: Random, model: onnx.ModelProto) -> None:
    graph, make = model.graph, helper.make_node
    many = constant(model, "many", np.array([10**6, 1, 1000, 1], np.int64))
    graph.node.insert(0, make("Shape", ["input"], ["sizes"], "sizes"))
    graph.node.insert(1, make("Mul", ["sizes", many], ["large"], "large"))
    if random.random() < 0.5:
        node = make("ConstantOfShape", ["large"], ["big"], "big")
    else:
        one = constant(model, "one", np.ones((1, 1, 1, 1), np.float32))
        node = make("Expand", [one, "large"], ["big"], "big")
    add_to_logits(model, node)


@on_model()
def a_large_convolution(random: Random, model: onnx.ModelProto) -> None:
    node = model.graph.node[random.choice([0, 2])]
    del node.attribute[:]
    far = random.choice([10_000, 60_000, 2**20])
    node.attribute.append(helper.make_attribute("pads", [far] * 4))


@on_model()
def absurd_attributes(random: Random, model: onnx.ModelProto) -> None:
    node = model.graph.node[random.choice([0, 2, 7, 8])]
    absurd = random.choice([0, -1, -(2**63), 2**31, 2**62, 2**63 - 1])
    name = random.choice(["strides", "dilations", "pads", "kernel_shape", "group"])
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    count = random.choice([1, 2, 2, 3, 1000]) * (2 if name == "pads" else 1)
    value = absurd if name == "group" else [absurd if absurd or name != "pads" else -9] * count
    node.attribute.append(helper.make_attribute(name, value))


@on_model()
def an_attribute_of_another_kind(random: Random, model: onnx.ModelProto) -> None:
    node = model.graph.node[random.choice([0, 2, 7, 8, 14, 16])]
    name = random.choice(["strides", "pads", "transB", "keepdims", "nobody"])
    value = random.choice([1.5, "x" * 10**6, [1.5], ["a"], numpy_helper.from_array(np.ones(3))])
    node.attribute.append(helper.make_attribute(name, value))


@on_model()
def a_loop_without_an_end(random: Random, model: onnx.ModelProto) -> None:
    make = helper.make_node
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            make("Identity", ["go"], ["goes"], "goes"),
            make("Add", ["sum", "sum"], ["sums"], "sums"),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []),
         info("sum", TensorProto.FLOAT, [])],
        [info("goes", TensorProto.BOOL, []), info("sums", TensorProto.FLOAT, [])],
    )  # fmt: skip
    trips = constant(model, "trips", np.int64(2**62))
    go = constant(model, "true", np.bool_(True))
    zero = constant(model, "zero", np.float32(0))
    add_to_logits(model, make("Loop", [trips, go, zero], ["big"], "big", body=body))


@forged()
def a_loop_that_the_manifest_explains(random: Random, folder: Path) -> None:
    model = onnx.load(folder / MODEL)
    a_loop_without_an_end(random, model)
    (folder / MODEL).write_bytes(model.SerializeToString())
    document = read_document(folder)
    document["base"]["operators"] = {"Loop": 9, "Identity": 9}
    write_document(folder, document)


@on_model()
def graphs_in_graphs(random: Random, model: onnx.ModelProto) -> None:
    make = helper.make_node
    out = helper.make_tensor_value_info("big", TensorProto.FLOAT, [])
    condition = constant(model, "condition", np.bool_(True))
    zero = numpy_helper.from_array(np.float32(0))
    inner = make("Constant", [], ["big"], "c", value=zero)
    for depth in range(random.choice([1, 5, 20, 40])):
        graph = helper.make_graph([inner], f"g{depth}", [], [out])
        inner = make("If", [condition], ["big"], f"if{depth}", then_branch=graph, else_branch=graph)
        if inner.ByteSize() > 100_000:
            break
    add_to_logits(model, inner)


@on_model()
def what_we_never_write(random: Random, model: onnx.ModelProto) -> None:
    what = random.randrange(3)
    if what == 0:
        model.training_info.add().initialization.CopyFrom(model.graph)
    elif what == 1:
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "sparse"))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64)))
        sparse.dims.extend([50_000, 50_000])
        add_to_logits(model, helper.make_node("Relu", ["sparse"], ["big"], "big"))
    else:
        model.opset_import.append(helper.make_opsetid("own", 1))
        call = helper.make_node("Again", ["x"], ["y"], domain="own")
        model.functions.append(
            helper.make_function(
                "own", "Again", ["x"], ["y"], [call],
                [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)],
            )
        )  # fmt: skip
        again = helper.make_node("Again", ["m"], ["big"], "again", domain="own")
        add_to_logits(model, again)


@on_model()
def what_the_lint_refuses(random: Random, model: onnx.ModelProto) -> None:
    make = helper.make_node
    what = random.randrange(3)
    if what == 0:
        add_to_logits(model, make("Identity", ["m"], ["big"], "idle"))
    elif what == 1:
        mask = constant(model, "mask", np.array([1, 0] * 7, np.float32))
        add_to_logits(model, make("Mul", ["m", mask], ["big"], "mask"))
    else:
        picked = constant(model, "picked", np.array([0, 2], np.int64))
        add_to_logits(model, make("Gather", ["m", picked], ["big"], "pick", axis=1))


@on_model()
def other_weights(random: Random, model: onnx.ModelProto) -> None:
    name = random.choice(["w3", "b3"])
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[random.randrange(values.size)] = random.choice([np.nan, np.inf, 1e38, 5.0])
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _is_repeated(field: Any) -> bool:
    new: bool | None = getattr(field, "is_repeated", None)  # protobuf 6 and later
    return bool(field.label == field.LABEL_REPEATED if new is None else new)


def _fields(message: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every field that is set, with its message, at all depths."""
    for field, value in message.ListFields():
        found.append((message, field))
        if field.type == field.TYPE_MESSAGE:
            for inner in value if _is_repeated(field) else [value]:
                _fields(inner, found)
    return found


ABSURD_NUMBERS = [0, 1, -1, 2, 3, 7, 255, 10**9, 2**31 - 1, -(2**31)]
LARGE_NUMBERS = [2**32, 2**40, 2**62, 2**63 - 1, -(2**63)]


@on_model("either")
def absurd_fields_of_the_graph(random: Random, model: onnx.ModelProto) -> None:
    fields = [(m, f) for m, f in _fields(model, []) if f.name not in ("raw_data", "doc_string")]
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        message, field = random.choice(fields)
        if field.type == field.TYPE_MESSAGE:
            values: Any = None
        elif field.type == field.TYPE_STRING:
            values = [
                "",
                "r0",
                "input",
                "Conv",
                "Mul",
                "w0",
                "steps",
                "x" * 5000,
                "Resize",
                "Slice",
            ]
        elif field.type == field.TYPE_BYTES:
            values = [b"", b"reflect", b"linear", b"\xff", b"x" * 5000]
        elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
            values = [0.0, -1.0, 1e38, float("nan"), float("inf")]
        elif field.type == field.TYPE_INT64:
            values = ABSURD_NUMBERS + LARGE_NUMBERS
        elif field.type == field.TYPE_ENUM:
            values = [value.number for value in field.enum_type.values]
        else:
            values = list(range(30))
        if _is_repeated(field):
            place = getattr(message, field.name)
            if values is None or random.random() < 0.3:
                what = random.randrange(3)
                if what == 0 or not len(place):
                    del place[:]
                elif what == 1:
                    del place[random.randrange(len(place))]
                else:
                    place.append(random.choice(values or list(place)))
            elif len(place):
                place[random.randrange(len(place))] = random.choice(values)
        elif values is None or random.random() < 0.1:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, random.choice(values))


@on_model("either")
def absurd_constants_of_the_graph(random: Random, model: onnx.ModelProto) -> None:
    names = {"from", "to", "sides", "steps", "pads", "axes", "flat"}
    tensor = random.choice([t for t in model.graph.initializer if t.name in names])
    values = numpy_helper.to_array(tensor).copy()
    for _ in range(random.choice([1, 1, 2, 8])):
        values[random.randrange(len(values))] = random.choice(ABSURD_NUMBERS + LARGE_NUMBERS)
    if random.random() < 0.2:
        values = values[: random.randrange(len(values))]
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@forged("either")
def flipped_bits_of_the_graph(random: Random, folder: Path) -> None:
    flip_bits(random, folder / MODEL, random.choice([1, 1, 2, 5, 50]))


@forged()
def a_truncated_graph(random: Random, folder: Path) -> None:
    path = folder / MODEL
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])
