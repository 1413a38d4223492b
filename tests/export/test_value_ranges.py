"""The largest value at each place, against torch's own."""

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import fx

from polarprune_export.onnx_writer import write_onnx
from polarprune_export.value_ranges import largest_values, nodes_above


def test_they_are_those_of_the_network(plain: fx.GraphModule, tmp_path: Path) -> None:
    write_onnx(plain, tmp_path / "m.onnx", torch.randn(2, 3, 16, 16))
    model = onnx.load(str(tmp_path / "m.onnx"))
    images = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32)
    found = largest_values(model, [images[:4], images[4:]])
    with torch.no_grad():
        logits = plain(torch.from_numpy(images))
        stem = torch.relu(plain.stem_bn(plain.stem(torch.from_numpy(images))))  # type: ignore[operator]
    first = next(node.output[0] for node in model.graph.node if node.op_type == "Relu")
    np.testing.assert_allclose(found["logits"], float(logits.abs().max()), rtol=1e-5)
    np.testing.assert_allclose(found[first], float(stem.max()), rtol=1e-5)
    assert set(found) == {output for node in model.graph.node for output in node.output}


def test_nodes_on_both_sides_of_a_large_value_are_named(
    plain: fx.GraphModule, tmp_path: Path
) -> None:
    write_onnx(plain, tmp_path / "m.onnx", torch.randn(2, 3, 16, 16))
    model = onnx.load(str(tmp_path / "m.onnx"))
    names = {node.name: node for node in model.graph.node}
    loud = names["relu_0"].output[0]
    around = {n.name for n in model.graph.node if loud in (*n.input, *n.output)}
    assert set(nodes_above(model, {loud: 9e4}, 3e4)) == around
    assert nodes_above(model, {loud: 9e3}, 3e4) == ()
