"""Each finding of the lint, planted in a graph that passes without it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from polarprune.errors import Refused
from polarprune_export import lint_onnx
from polarprune_export.onnx_lint import explainable_findings

WEIGHT = numpy_helper.from_array(np.full((4, 3, 1, 1), 0.5, np.float32), "weight")
FOUR = [
    numpy_helper.from_array(np.full(4, value, np.float32), name)
    for name, value in (("scale", 0.9), ("shift", 0.1), ("mean", 0.2), ("variance", 1.5))
]
NORM = ["scale", "shift", "mean", "variance"]


def write(
    path: Path, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], outputs: list[str]
) -> Path:
    for i, node in enumerate(nodes):
        node.name = node.name or f"node_{i}"
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def planted(path: Path, nodes: list[onnx.NodeProto], *constants: onnx.TensorProto) -> Path:
    """Conv, then the nodes, which read "middle" and write "logits"."""
    conv = helper.make_node("Conv", ["input", "weight"], ["middle"])
    return write(path, [conv, *nodes], [WEIGHT, *constants], ["logits"])


def constant(name: str, *values: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.float32).reshape(-1, 1, 1), name)


INDICES = numpy_helper.from_array(np.array([0, 2, 3]), "indices")

PLANTED = {
    "Gather": (
        [helper.make_node("Gather", ["middle", "indices"], ["logits"], axis=1)],
        [INDICES],
    ),
    "GatherElements": (
        [helper.make_node("GatherElements", ["middle", "indices"], ["logits"], axis=1)],
        [numpy_helper.from_array(np.zeros((1, 3, 8, 8), np.int64), "indices")],
    ),
    "ScatterND": (
        [helper.make_node("ScatterND", ["middle", "indices", "updates"], ["logits"])],
        [
            numpy_helper.from_array(np.array([[0]]), "indices"),
            numpy_helper.from_array(np.zeros((1, 4, 8, 8), np.float32), "updates"),
        ],
    ),
    "Identity": ([helper.make_node("Identity", ["middle"], ["logits"])], []),
    "BatchNormalization": (
        [helper.make_node("BatchNormalization", ["middle", *NORM], ["logits"])],
        FOUR,
    ),
    "Mul by 1": (
        [helper.make_node("Mul", ["middle", "mask"], ["logits"])],
        [constant("mask", 1)],
    ),
    "Mul by a mask": (
        [helper.make_node("Mul", ["mask", "middle"], ["logits"])],
        [constant("mask", 1, 0, 0, 1)],
    ),
    "Mul by a reshaped mask": (
        [
            helper.make_node("Unsqueeze", ["mask", "axes"], ["wide"]),
            helper.make_node("Mul", ["middle", "wide"], ["logits"]),
        ],
        [constant("mask", 1, 0, 0, 1), numpy_helper.from_array(np.array([0]), "axes")],
    ),
    "Mul by a Constant node": (
        [
            helper.make_node("Constant", [], ["one"], value_float=1.0),
            helper.make_node("Mul", ["middle", "one"], ["logits"]),
        ],
        [],
    ),
    "Where": (
        [
            helper.make_node("Greater", ["middle", "middle"], ["condition"]),
            helper.make_node("Where", ["condition", "middle", "middle"], ["logits"]),
        ],
        [],
    ),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_operator_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    nodes, constants = PLANTED[kind]
    path = planted(tmp_path / "planted.onnx", nodes, *constants)
    with pytest.raises(Refused, match=f"{kind.split()[0]} 'node_") as caught:
        lint_onnx(path)
    assert "\n" not in str(caught.value)


ALLOWED = {
    "Mul by other constants": (
        [helper.make_node("Mul", ["middle", "gamma"], ["logits"])],
        [constant("gamma", 1, 0.5, 0, 1)],
    ),
    "a norm behind something else": (
        [
            helper.make_node("Relu", ["middle"], ["active"]),
            helper.make_node("BatchNormalization", ["active", *NORM], ["logits"]),
        ],
        FOUR,
    ),
    "a norm behind a convolution that is read elsewhere too": (
        [
            helper.make_node("BatchNormalization", ["middle", *NORM], ["normal"]),
            helper.make_node("Add", ["middle", "normal"], ["logits"]),
        ],
        FOUR,
    ),
    "a norm behind a convolution whose weight another one reads": (
        [
            helper.make_node("Conv", ["input", "weight"], ["other"]),
            helper.make_node("BatchNormalization", ["middle", *NORM], ["normal"]),
            helper.make_node("Add", ["other", "normal"], ["logits"]),
        ],
        FOUR,
    ),
    "one place along an axis": (
        [helper.make_node("Gather", ["middle", "place"], ["logits"], axis=1)],
        [numpy_helper.from_array(np.array(2), "place")],
    ),
    "a number out of a shape": (
        [
            helper.make_node("Shape", ["middle"], ["shape"]),
            helper.make_node("Gather", ["shape", "indices"], ["three"]),
            helper.make_node("Cast", ["three"], ["logits"], to=TensorProto.FLOAT),
        ],
        [INDICES],
    ),
}


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_only_looks_like_a_finding_passes(kind: str, tmp_path: Path) -> None:
    nodes, constants = ALLOWED[kind]
    lint_onnx(planted(tmp_path / "allowed.onnx", nodes, *constants))


def test_every_finding_is_listed_not_only_the_first(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["middle"], ["same"]),
        helper.make_node("Gather", ["same", "indices"], ["logits"], axis=1),
    ]
    with pytest.raises(Refused, match=r"Identity 'node_1'.*Gather 'node_2'"):
        lint_onnx(planted(tmp_path / "two.onnx", nodes, INDICES))


def test_one_place_that_is_computed_is_picked_by_index(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Abs", ["place"], ["computed"]),
        helper.make_node("Gather", ["middle", "computed"], ["logits"], axis=1),
    ]
    place = numpy_helper.from_array(np.array(2), "place")
    with pytest.raises(Refused, match="Gather 'node_2'"):
        lint_onnx(planted(tmp_path / "computed.onnx", nodes, place))


EXPLAINED = ("Gather", "GatherElements", "ScatterND", "Mul by a mask", "Where")


@pytest.mark.parametrize("kind", EXPLAINED)
def test_what_the_network_had_before_pruning_passes_and_not_one_more(
    kind: str, tmp_path: Path
) -> None:
    nodes, constants = PLANTED[kind]
    path = planted(tmp_path / "planted.onnx", nodes, *constants)
    own = explainable_findings(onnx.load(path))
    assert kind.split()[0] in own
    lint_onnx(path, own)
    lint_onnx(path, {name: count + 1 for name, count in own.items()})
    for name, count in own.items():
        with pytest.raises(Refused, match=f"{name} 'node_"):
            lint_onnx(path, {**own, name: count - 1})
    with pytest.raises(Refused, match=r"must not have: .* collapse the network before"):
        lint_onnx(path, {"Round": 9})


def test_a_second_one_names_what_there_was(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["middle", "indices"], ["three"], axis=1),
        helper.make_node("Gather", ["three", "indices"], ["logits"], axis=2),
    ]
    path = planted(tmp_path / "two.onnx", nodes, INDICES)
    with pytest.raises(Refused, match=r"'node_1'.*'node_2'.*before pruning it has 1 Gather"):
        lint_onnx(path, {"Gather": 1})


@pytest.mark.parametrize("kind", ["Identity", "BatchNormalization"])
def test_no_network_explains_what_the_export_left_over(kind: str, tmp_path: Path) -> None:
    nodes, constants = PLANTED[kind]
    path = planted(tmp_path / "planted.onnx", nodes, *constants)
    assert explainable_findings(onnx.load(path)) == {}
    with pytest.raises(Refused, match=f"{kind} 'node_1'"):
        lint_onnx(path, {kind: 9})
