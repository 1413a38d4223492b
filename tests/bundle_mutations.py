"""What may be wrong with a bundle, by accident or on purpose: one function a kind.

A mutation gets random numbers and the folder of a bundle of its own, which it damages. The first
half leaves the manifest's digests as they are; the second (`FORGED`) makes them fit again, as
whoever can write the manifest can. `expected` is what `verify_bundle` has to do: refuse, or either
where the damage may be harmless (a flipped bit in the words of a description).
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from polarprune.manifest import Manifest
from polarprune_export.engine_description import fingerprint_of
from tests.small_bundles import ENGINE

FILES = ("model.onnx", "parity.safetensors", ENGINE)
MANIFEST = "manifest.json"
MODEL = "model.onnx"
SAMPLES = "parity.safetensors"

Apply = Callable[[Random, Path], None]


@dataclass(frozen=True)
class Mutation:
    """One kind of damage."""

    name: str
    apply: Apply
    expected: str


PLAIN: list[Mutation] = []
FORGED: list[Mutation] = []


def plain(expected: str = "refuse") -> Callable[[Apply], Apply]:
    """Registers damage to files as they lie there."""

    def register(apply: Apply) -> Apply:
        PLAIN.append(Mutation(apply.__name__, apply, expected))
        return apply

    return register


def forged(expected: str = "refuse") -> Callable[[Apply], Apply]:
    """Registers damage to files after which sizes, digests and fingerprint are made to fit."""

    def register(apply: Apply) -> Apply:
        def forge(random: Random, folder: Path) -> None:
            apply(random, folder)
            redigest(folder)

        FORGED.append(Mutation(apply.__name__, forge, expected))
        return apply

    return register


def redigest(folder: Path) -> None:
    """Makes sizes, digests and the engine's fingerprint fit, as far as there is a place."""
    document = read_document(folder)
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
        return
    for name, entry in document["files"].items():
        path = folder / name
        if isinstance(entry, dict) and name in FILES and path.is_file():
            content = path.read_bytes()
            entry["size"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    try:
        manifest = Manifest.from_json(json.dumps(document))
        assert manifest.engine is not None
        digest = manifest.files[MODEL].sha256
        document["engine"]["fingerprint"] = fingerprint_of(manifest.engine, digest)
    except Exception:  # no manifest any more: there is nothing that could fit
        pass
    write_document(folder, document)


def read_document(folder: Path) -> Any:
    return json.loads((folder / MANIFEST).read_text())


def write_document(folder: Path, document: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps(document, indent=2))


def flip_bits(random: Random, path: Path, count: int) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(count):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


# --- damage to files as they lie there ---------------------------------------------------------


@plain()
def truncate_a_file(random: Random, folder: Path) -> None:
    path = folder / random.choice(FILES)
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])


@plain()
def lengthen_a_file(random: Random, folder: Path) -> None:
    path = folder / random.choice(FILES)
    path.write_bytes(path.read_bytes() + random.randbytes(random.randint(1, 100)))


@plain()
def flip_bits_of_a_file(random: Random, folder: Path) -> None:
    path = folder / random.choice(FILES)
    content = path.read_bytes()
    while path.read_bytes() == content:
        flip_bits(random, path, random.randint(1, 9))


@plain("either")
def flip_bits_of_the_manifest(random: Random, folder: Path) -> None:
    flip_bits(random, folder / MANIFEST, random.randint(1, 3))


@plain()
def truncate_the_manifest(random: Random, folder: Path) -> None:
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size - 2)])


@plain()
def swap_two_files(random: Random, folder: Path) -> None:
    one, two = random.sample([*FILES, MANIFEST], 2)
    (folder / one).rename(folder / "between")
    (folder / two).rename(folder / one)
    (folder / "between").rename(folder / two)


@plain()
def delete_a_file(random: Random, folder: Path) -> None:
    (folder / random.choice([*FILES, MANIFEST])).unlink()


@plain("either")
def duplicate_a_file(random: Random, folder: Path) -> None:
    one, two = random.sample(FILES, 2)
    shutil.copy(folder / one, folder / random.choice(["copy", two]))


@plain("either")
def strange_names_beside(random: Random, folder: Path) -> None:
    names = [b"\xff\xfe", b"a\nb", b"a\x1b[31m", b"x" * 200, "Hühnchen".encode(), b"a\xed\xa0\x80"]
    Path(os.fsdecode(os.fsencode(folder) + b"/" + random.choice(names))).write_bytes(b"x")


@plain()
def lead_out_of_the_folder(random: Random, folder: Path) -> None:
    names = [
        *("../secret", "../../secret", "a/../../secret", "./../secret", "..", ".", ""),
        *("/etc/hostname", "//etc/hostname", "\\\\host\\share", "..\\secret", "a/b", "C:\\x"),
        *("a\0b", "x" * 5000, "a\nb", "\ud800", MANIFEST, "manifest.json.sig", "\x1b[2J"),
    ]
    (folder.parent / "secret").write_bytes(b"secret")
    document = read_document(folder)
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
    document["files"][random.choice(names)] = entry
    write_document(folder, document)


@plain()
def replace_by_a_link_out_of_the_folder(random: Random, folder: Path) -> None:
    path = folder / random.choice([*FILES, MANIFEST])
    outside = folder.parent / "outside"
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside if random.random() < 0.5 else Path("..") / outside.name)


@plain()
def replace_by_what_is_no_file(random: Random, folder: Path) -> None:
    path = folder / random.choice([*FILES, MANIFEST])
    path.unlink()
    what = random.randrange(6)
    if what == 0:
        path.mkdir()
    elif what == 1:
        os.mkfifo(path)
    elif what == 2:
        path.symlink_to("nowhere")
    elif what == 3:
        path.symlink_to(path.name)
    elif what == 4:
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("/proc/self/mem")


@plain()
def a_manifest_that_is_no_manifest(random: Random, folder: Path) -> None:
    whole = (folder / MANIFEST).read_text()
    texts: list[bytes] = [
        b"",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"null",
        b"[]",
        b"1" * 5000,
        b'"' + b"x" * 1_000_000 + b'"',
        whole.encode("utf-16"),
        b"\xef\xbb\xbf" + whole.encode() + b"\x00",
        whole.replace('"schema": 1', '"schema": ' + "9" * 4000).encode(),
        whole.replace('"schema": 1', '"schema": "' + "x" * 100_000 + '"').encode(),
        whole.replace('"schema": 1', '"schema": NaN').encode(),
        whole.replace('"schema": 1', '"schema": 1.0').encode(),
        whole.replace('"n": 4', '"n": ' + "9" * 6000).encode(),
        whole.replace('"tolerance": 1e-05', '"tolerance": Infinity').encode(),
        whole.replace('"tolerance": 1e-05', '"tolerance": 1e999').encode(),
        whole.replace('"name": "small"', '"name": "small", "name": "large"').encode(),
        whole.replace('"name": "small"', '"name": "\\ud800"').encode(),
        whole.replace('"model": "small"', '"model": ' + "[" * 900 + "]" * 900).encode(),
    ]
    (folder / MANIFEST).write_bytes(random.choice(texts))


# --- values of the manifest, with digests that fit ---------------------------------------------

# Whatever stands here is for people to read; other words are as good.
WORDS = {"base", "name", "classes", "real_images", "tools", "runs_on", "note", "stage", "against"}
WORDS |= {"data", "measured_with", "version", "gpu", "driver", "flags", "fingerprint"}

ABSURD: list[Any] = [
    *(-1, -2, 0, 10**9, 2**31, 2**40, 2**63, -(2**63), 10**30),
    *(1e308, -1.5, 1e-320, float("nan"), float("inf"), float("-inf")),
    *("", "x" * 1_000_000, "../../x", "a\nb", "\x00", "\ud800", "float16", "tensorrt", "0" * 64),
    *(None, True, False, [], {}, [[[[[[]]]]]], {"a": {"b": {}}}, [1] * 100_000, [10**9] * 4),
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a document."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            found += _places(inner, (*path, i))
    return found


def _put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for step in path[:-1]:
        document = document[step]
    document[path[-1]] = value


def _absurd_manifest(random: Random, folder: Path, *, words: bool) -> None:
    document = read_document(folder)
    places = [p for p in _places(document) if bool(WORDS & set(map(str, p))) is words]
    # Sizes and digests would be made to fit again.
    places = [p for p in places if p[0] != "files" or len(p) < 3]
    path = random.choice(places)
    was = json.dumps(document)
    while json.dumps(document) == was:
        _put(document, path, random.choice(ABSURD))
    write_document(folder, document)


@forged()
def an_absurd_value_in_the_manifest(random: Random, folder: Path) -> None:
    _absurd_manifest(random, folder, words=False)


@forged("either")
def an_absurd_word_in_the_manifest(random: Random, folder: Path) -> None:
    _absurd_manifest(random, folder, words=True)


# Bundles of older versions lack these, or they may be unknown.
YOUNGER = {"flags", "fingerprint", "gpu", "driver"}


@forged()
def a_value_too_many_or_too_few(random: Random, folder: Path) -> None:
    document = read_document(folder)
    place = random.choice([document, document["engine"], document["batch"], document["inputs"][0]])
    if random.random() < 0.5:
        place[random.choice(["x", "", "__class__", "\ud800", "y" * 100_000])] = 1
    else:
        del place[random.choice([key for key in place if key not in YOUNGER])]
    write_document(folder, document)


@plain()
def an_absurd_size_or_digest(random: Random, folder: Path) -> None:
    document = read_document(folder)
    entry = document["files"][random.choice(FILES)]
    if random.random() < 0.7:
        entry["size"] = random.choice([-1, 0, 1, 10**10, 2**40, 2**62, 2**63, 10**30, 5.0])
    else:
        entry["sha256"] = random.choice(["", "0" * 64, "x" * 10**6, "\ud800", "0" * 63 + "\n"])
    write_document(folder, document)


# --- the graph, with digests that fit ----------------------------------------------------------


def on_model(expected: str = "refuse") -> Callable[..., Any]:
    """Registers damage to the parsed graph."""

    def register(change: Callable[[Random, onnx.ModelProto], None]) -> Any:
        def apply(random: Random, folder: Path) -> None:
            model = onnx.load(folder / MODEL, load_external_data=False)
            change(random, model)
            (folder / MODEL).write_bytes(model.SerializeToString())

        apply.__name__ = change.__name__
        forged(expected)(apply)
        return change

    return register


def _weight(random: Random, model: onnx.ModelProto) -> onnx.TensorProto:
    return random.choice([t for t in model.graph.initializer if t.name[0] in "wb"])


def _constant(model: onnx.ModelProto, name: str, values: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def _add_to_logits(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Makes the largest value of the node's output part of the logits, so that it is computed."""
    graph = model.graph
    graph.node[-1].output[0] = "inner"
    graph.node.append(node)
    graph.node.append(helper.make_node("ReduceMax", [node.output[0]], ["top"], "top", keepdims=0))
    graph.node.append(helper.make_node("Cast", ["top"], ["ftop"], "cast", to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Add", ["inner", "ftop"], ["logits"], "join"))


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
    _weight(random, model).data_type = random.choice([0, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99])


@on_model()
def less_or_more_data_than_stated(random: Random, model: onnx.ModelProto) -> None:
    tensor = _weight(random, model)
    if random.random() < 0.5:
        tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data))]
    else:
        tensor.raw_data = tensor.raw_data + random.randbytes(random.choice([1, 4, 400]))


@on_model()
def absurd_sizes_of_weights(random: Random, model: onnx.ModelProto) -> None:
    tensor = _weight(random, model)
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
    tensor = _weight(random, model)
    field = random.choice(["float_data", "int32_data", "int64_data", "double_data"])
    getattr(tensor, field).extend([1] * random.choice([1, 5, 1000]))
    if random.random() < 0.5:
        tensor.ClearField("raw_data")


@on_model()
def a_segment_or_a_string(random: Random, model: onnx.ModelProto) -> None:
    tensor = _weight(random, model)
    if random.random() < 0.5:
        tensor.segment.begin, tensor.segment.end = 0, random.choice([1, 2**62])
    else:
        tensor.data_type = TensorProto.STRING
        tensor.ClearField("raw_data")
        tensor.string_data.extend([b"x" * 1000] * 16)


@on_model()
def data_in_another_file(random: Random, model: onnx.ModelProto) -> None:
    tensor = _weight(random, model)
    if random.random() < 0.3:
        tensor = TensorProto()
        tensor.CopyFrom(_weight(random, model))
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
        graph.initializer.append(_weight(random, model))
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


@on_model()
def ten_gigabytes_out_of_nothing(random: Random, model: onnx.ModelProto) -> None:
    huge = np.array([50_000, 50_000], np.int64)
    what = random.randrange(8)
    make = helper.make_node
    if what == 0:
        node = make("ConstantOfShape", [_constant(model, "shape", huge)], ["big"], "big")
    elif what == 1:
        one = _constant(model, "one", np.ones((1, 1), np.float32))
        node = make("Expand", [one, _constant(model, "shape", huge)], ["big"], "big")
    elif what == 2:
        one = _constant(model, "one", np.ones((1, 1), np.float32))
        node = make("Tile", [one, _constant(model, "shape", huge)], ["big"], "big")
    elif what == 3:
        pads = _constant(model, "pads", np.array([0, 0, 50_000, 50_000], np.int64))
        node = make("Pad", ["m", pads], ["big"], "big")
    elif what == 4:
        scales = _constant(model, "scales", np.array([1, 1, 20_000, 20_000], np.float32))
        node = make("Resize", ["p", "", scales], ["big"], "big")
    elif what == 5:
        names = [_constant(model, f"range_{i}", np.int64(v)) for i, v in enumerate((0, 10**10, 1))]
        node = make("Range", names, ["big"], "big")
    elif what == 6:
        depth = _constant(model, "depth", np.int64(10**8))
        values = _constant(model, "values", np.array([0, 1], np.float32))
        indices = _constant(model, "indices", np.zeros(100, np.int64))
        node = make("OneHot", [indices, depth, values], ["big"], "big")
    else:
        node = make("RandomNormal", [], ["big"], "big", shape=[50_000, 50_000])
    _add_to_logits(model, node)


@on_model()
def a_size_that_is_computed(random: Random, model: onnx.ModelProto) -> None:
    graph, make = model.graph, helper.make_node
    many = _constant(model, "many", np.array([10**6, 1, 1000, 1], np.int64))
    graph.node.insert(0, make("Shape", ["input"], ["sizes"], "sizes"))
    graph.node.insert(1, make("Mul", ["sizes", many], ["large"], "large"))
    if random.random() < 0.5:
        node = make("ConstantOfShape", ["large"], ["big"], "big")
    else:
        one = _constant(model, "one", np.ones((1, 1, 1, 1), np.float32))
        node = make("Expand", [one, "large"], ["big"], "big")
    _add_to_logits(model, node)


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
    trips = _constant(model, "trips", np.int64(2**62))
    go = _constant(model, "true", np.bool_(True))
    zero = _constant(model, "zero", np.float32(0))
    _add_to_logits(model, make("Loop", [trips, go, zero], ["big"], "big", body=body))


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
    condition = _constant(model, "condition", np.bool_(True))
    constant = numpy_helper.from_array(np.float32(0))
    inner = make("Constant", [], ["big"], "c", value=constant)
    for depth in range(random.choice([1, 5, 20, 40])):
        graph = helper.make_graph([inner], f"g{depth}", [], [out])
        inner = make("If", [condition], ["big"], f"if{depth}", then_branch=graph, else_branch=graph)
        if inner.ByteSize() > 100_000:
            break
    _add_to_logits(model, inner)


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
        _add_to_logits(model, helper.make_node("Relu", ["sparse"], ["big"], "big"))
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
        _add_to_logits(model, again)


@on_model()
def what_the_lint_refuses(random: Random, model: onnx.ModelProto) -> None:
    make = helper.make_node
    what = random.randrange(3)
    if what == 0:
        _add_to_logits(model, make("Identity", ["m"], ["big"], "idle"))
    elif what == 1:
        mask = _constant(model, "mask", np.array([1, 0] * 7, np.float32))
        _add_to_logits(model, make("Mul", ["m", mask], ["big"], "mask"))
    else:
        picked = _constant(model, "picked", np.array([0, 2], np.int64))
        _add_to_logits(model, make("Gather", ["m", picked], ["big"], "pick", axis=1))


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


# --- the stored samples, with digests that fit -------------------------------------------------


def _split(folder: Path) -> tuple[dict[str, Any], bytes]:
    content = (folder / SAMPLES).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _join(folder: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / SAMPLES).write_bytes(struct.pack("<Q", len(text)) + text + data)


@forged()
def an_absurd_header_length(random: Random, folder: Path) -> None:
    content = (folder / SAMPLES).read_bytes()
    length = random.choice([0, 1, 2**32, 2**63, 2**64 - 1, len(content), len(content) + 1])
    (folder / SAMPLES).write_bytes(struct.pack("<Q", length) + content[8:])


@forged()
def a_header_that_is_none(random: Random, folder: Path) -> None:
    header, data = _split(folder)
    texts = [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff" * 10, b"{}", b'{"a":1}']
    texts.append(json.dumps(header).encode().replace(b'"F32"', b'"F32", "dtype": "F64"', 1))
    _join(folder, random.choice(texts), data)


@forged()
def an_absurd_value_in_the_header(random: Random, folder: Path) -> None:
    header, data = _split(folder)
    tensor = header[random.choice(list(header))]
    field = random.choice(["dtype", "shape", "data_offsets"])
    if field == "dtype":
        types = ["F64", "BF16", "F16", "F8_E4M3", "I64", "BOOL", "U8", "F32", "F99", "", 1, None]
        types.remove(tensor["dtype"])
        tensor["dtype"] = random.choice(types)
    elif field == "shape":
        shapes = [[], [0], [10**9, 10**9], [2**62, 4], [-1, 3], [50_000, 50_000], 1, None, ["a"]]
        tensor["shape"] = random.choice(shapes)
    else:
        offsets = [[0, 0], [0, 2**62], [-1, 4], [4, 0], [0, 4], [0], None, [2**63, 2**64 - 1]]
        offsets = [pair for pair in offsets if pair != tensor["data_offsets"]]
        tensor["data_offsets"] = random.choice(offsets)
    _join(folder, header, data)


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    return dict(load((folder / SAMPLES).read_bytes()))


@forged()
def samples_that_do_not_fit(random: Random, folder: Path) -> None:
    from safetensors.numpy import save

    arrays = _arrays(folder)
    kind = random.choice(["random", "real"])
    inputs = "random_inputs" if kind == "random" else "real_pixels"
    output = f"{kind}_output_0"
    what = random.randrange(10)
    if what == 0:
        del arrays[random.choice(["random_inputs", output])]
    elif what == 1:  # nothing is compared: vacuously equal
        arrays[inputs], arrays[output] = arrays[inputs][:0], arrays[output][:0]
    elif what == 2:
        arrays[inputs] = arrays[inputs][:1]
    elif what == 3:
        arrays[inputs] = arrays[inputs].astype(np.float64)
    elif what == 4:
        arrays[inputs] = arrays[inputs].reshape(-1)
    elif what == 5:
        arrays[output] = arrays[output][:, :1]
    elif what == 6:
        arrays[f"{kind}_output_1"] = arrays[output]
    elif what == 7:
        arrays[output] = arrays[output].astype(np.int64)
    elif what == 8:
        arrays[output] = np.full_like(arrays[output], random.choice([np.nan, np.inf, 0]))
    else:
        arrays[inputs] = np.repeat(arrays[inputs], 2, axis=2)
    (folder / SAMPLES).write_bytes(save(arrays))


@forged("either")
def flipped_bits_of_the_samples(random: Random, folder: Path) -> None:
    flip_bits(random, folder / SAMPLES, random.choice([1, 2, 5, 50]))


@forged("pass")
def another_engine(random: Random, folder: Path) -> None:
    (folder / ENGINE).write_bytes(random.randbytes(random.choice([0, 1, 512])))
