"""Damage to a parsed graph: how it is registered, and pieces of graphs."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.mutations.registry import (
    MODEL,
    forged,
)


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


def weight(random: Random, model: onnx.ModelProto) -> onnx.TensorProto:
    return random.choice([t for t in model.graph.initializer if t.name[0] in "wb"])


def constant(model: onnx.ModelProto, name: str, values: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def add_to_logits(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Makes the largest value of the node's output part of the logits, so that it is computed."""
    graph = model.graph
    graph.node[-1].output[0] = "inner"
    graph.node.append(node)
    graph.node.append(helper.make_node("ReduceMax", [node.output[0]], ["top"], "top", keepdims=0))
    graph.node.append(helper.make_node("Cast", ["top"], ["ftop"], "cast", to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Add", ["inner", "ftop"], ["logits"], "join"))
