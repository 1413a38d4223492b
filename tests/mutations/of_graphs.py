"""Graphs whose parts do not fit: shapes, types, weights, names, operators."""

from random import Random

import onnx
from onnx import TensorProto, helper

from tests.mutations.graph_parts import on_model, weight
from tests.mutations.registry import (
    MANIFEST,
)


@on_model()
def absurd_shapes_of_inputs_and_outputs(random: Random, model: onnx.ModelProto) -> None:
    value = random.choice([model.graph.input[0], model.graph.output[0]])
    shape = value.type.tensor_type.shape
    side = random.choice(shape.dim[1:])
    side.dim_value = random.choice([10**9, 2**40, 2**62, -5, 0, 1, 7])
    if random.random() < 0.2:
        del shape.dim[:]


@on_model()
def another_type_of_input_or_output(random: Random, model: onnx.ModelProto) -> None:
    value = random.choice([model.graph.input[0], model.graph.output[0]])
    what = random.randrange(4)
    if what == 0:
        types = [0, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99]
        value.type.tensor_type.elem_type = random.choice(types)
    elif what == 1:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif what == 2:
        value.type.Clear()
    else:
        value.name = random.choice(["", "other", "a\nb", "x" * 100_000])


@on_model()
def another_type_of_weight(random: Random, model: onnx.ModelProto) -> None:
    weight(random, model).data_type = random.choice([0, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99])


@on_model()
def less_or_more_data_than_stated(random: Random, model: onnx.ModelProto) -> None:
    tensor = weight(random, model)
    if random.random() < 0.5:
        tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data))]
    else:
        tensor.raw_data = tensor.raw_data + random.randbytes(random.choice([1, 4, 400]))


@on_model()
def absurd_sizes_of_weights(random: Random, model: onnx.ModelProto) -> None:
    tensor = weight(random, model)
    dims = random.choice(
        [[50_000, 50_000], [2**62, 4], [2**63 - 1], [-1], [-4, -4, 3, 3], [0], [2**32, 2**32], []]
    )
    if len(dims) == len(tensor.dims) == 0:
        dims = [7]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    if random.random() < 0.3:
        tensor.ClearField("raw_data")


@on_model()
def data_in_two_places(random: Random, model: onnx.ModelProto) -> None:
    tensor = weight(random, model)
    field = random.choice(["float_data", "int32_data", "int64_data", "double_data"])
    getattr(tensor, field).extend([1] * random.choice([1, 5, 1000]))
    if random.random() < 0.5:
        tensor.ClearField("raw_data")


@on_model()
def a_segment_or_a_string(random: Random, model: onnx.ModelProto) -> None:
    tensor = weight(random, model)
    if random.random() < 0.5:
        tensor.segment.begin, tensor.segment.end = 0, random.choice([1, 2**62])
    else:
        tensor.data_type = TensorProto.STRING
        tensor.ClearField("raw_data")
        tensor.string_data.extend([b"x" * 1000] * 16)


@on_model()
def data_in_another_file(random: Random, model: onnx.ModelProto) -> None:
    tensor = weight(random, model)
    if random.random() < 0.3:
        tensor = TensorProto()
        tensor.CopyFrom(weight(random, model))
        node = helper.make_node("Constant", [], ["constant"], "constant", value=tensor)
        model.graph.node.insert(0, node)
        tensor = model.graph.node[0].attribute[0].t
    if random.random() < 0.8:
        tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    places = [
        "../../../etc/passwd",
        "/etc/passwd",
        MANIFEST,
        "/dev/zero",
        "..",
        "",
        "\x00",
        "a/../b",
    ]
    pairs = {"location": random.choice(places), "offset": "0"}
    pairs["length"] = random.choice(["1", "16", str(2**62), "-1", "x"])
    for key, value in pairs.items():
        if random.random() < 0.9:
            tensor.external_data.add(key=key, value=value)


@on_model()
def a_cycle(random: Random, model: onnx.ModelProto) -> None:
    nodes = model.graph.node
    last = random.randrange(1, len(nodes))
    first = random.randrange(last + 1)
    nodes[first].input[0] = nodes[last].output[0]


@on_model()
def a_name_twice(random: Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    what = random.randrange(4)
    if what == 0:
        graph.node[5].output[0] = graph.node[0].output[0]
    elif what == 1:
        graph.initializer.append(weight(random, model))
    elif what == 2:
        graph.input.append(graph.input[0])
    else:
        graph.output.append(graph.output[0])


@on_model()
def an_input_that_is_missing(random: Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    what = random.randrange(5)
    if what == 0:
        random.choice(graph.node).input[0] = random.choice(["nowhere", "", "x" * 10**6, "a\nb"])
    elif what == 1:
        del graph.input[:]
    elif what == 2:
        graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [1]))
    elif what == 3:
        del random.choice(graph.node).input[:]
    else:
        del graph.initializer[random.randrange(len(graph.initializer))]


@on_model()
def a_part_that_is_missing(random: Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    what = random.randrange(6)
    if what == 0:
        del graph.node[:]
    elif what == 1:
        del graph.output[:]
    elif what == 2:
        model.ClearField("graph")
    elif what == 3:
        del graph.node[random.randrange(len(graph.node))]
    elif what == 4:
        random.choice(graph.node).ClearField("op_type")
    else:
        del random.choice(graph.node).output[:]


@on_model()
def an_unknown_operator(random: Random, model: onnx.ModelProto) -> None:
    node = random.choice(model.graph.node)
    what = random.randrange(3)
    if what == 0:
        node.op_type = random.choice(["Whirl", "", "conv", "x" * 10**6, "Gather\nGather"])
    else:
        node.domain = random.choice(["nobody", "com.microsoft", "ai.onnx.ml", "x" * 10**6])
        if what == 2:
            node.op_type = random.choice(["Gather", "Mul", "Where", "BatchNormalization", "Resize"])
            del node.input[1:]
        if random.random() < 0.5:
            model.opset_import.append(helper.make_opsetid(node.domain, 1))


@on_model()
def an_unknown_version(random: Random, model: onnx.ModelProto) -> None:
    what = random.randrange(4)
    if what == 0:
        model.opset_import[0].version = random.choice([999, 0, -1, 2**62])
    elif what == 1:
        del model.opset_import[:]
    elif what == 2:
        model.opset_import.append(helper.make_opsetid("", 1))
    else:
        model.ir_version = random.choice([0, 999, 2**62, -1])
