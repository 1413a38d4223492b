"""Parity: what it records, and that it notices."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import fx

from polarprune.errors import ParityError
from polarprune_export import check_parity
from polarprune_export.onnx_writer import OnnxReport
from polarprune_export.output_comparison import compare_outputs


@pytest.fixture
def written(onnx_report: OnnxReport) -> Path:
    return onnx_report.path


def changed(written: Path, path: Path, *, factor: float) -> Path:
    """The model with one weight multiplied by a factor."""
    model = onnx.load(written)
    (tensor,) = [t for t in model.graph.initializer if t.name == "one.weight"]
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0, 1, 1] *= factor
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    return path


def test_both_links_are_recorded_with_their_inputs(plain: fx.GraphModule, written: Path) -> None:
    real = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    links = check_parity(plain, written, real_images=real).links
    assert [(link.inputs, link.n, link.passed) for link in links] == [
        ("random", 8, True),
        ("real", 5, True),
    ]
    for link in links:
        assert link.tolerance == 1e-5
        assert link.max_rel_error is not None
        assert 0 < link.max_rel_error < 1e-6
        assert link.top1_agreement == 1.0


def test_the_same_random_inputs_are_used_every_time(plain: fx.GraphModule, written: Path) -> None:
    first = check_parity(plain, written, real_images=None)
    second = check_parity(plain, written, real_images=None)
    assert first.links == second.links
    assert np.array_equal(first.random[0], second.random[0])


def test_one_changed_weight_breaks_parity_in_one_line(
    plain: fx.GraphModule, written: Path, tmp_path: Path
) -> None:
    path = changed(written, tmp_path / "changed.onnx", factor=1.5)
    with pytest.raises(ParityError, match=r"output 0\[\d, \d\] is .*, the reference") as caught:
        check_parity(plain, path, real_images=None)
    assert "\n" not in str(caught.value)


def test_a_value_that_is_not_finite_breaks_parity(
    plain: fx.GraphModule, written: Path, tmp_path: Path
) -> None:
    path = changed(written, tmp_path / "nan.onnx", factor=math.nan)
    with pytest.raises(ParityError, match="nan"):
        check_parity(plain, path, real_images=None)


def test_errors_are_measured_against_the_largest_reference_value() -> None:
    reference = [np.array([[1.0, -4.0], [0.0, 2.0]]), np.array([[10.0]])]
    outputs = [np.array([[1.0, -4.2], [0.1, 2.0]]), np.array([[10.3]])]
    comparison = compare_outputs(outputs, reference)
    assert comparison.max_abs_error == pytest.approx(0.3, rel=1e-12)
    assert comparison.max_rel_error == pytest.approx(0.05, rel=1e-12)  # 0.2 of 4
    assert comparison.top1_agreement == 1.0
    assert comparison.worst == "output 0[0, 1] is -4.2, the reference -4"


def test_infinities_that_agree_are_still_no_parity() -> None:
    comparison = compare_outputs([np.array([[np.inf]])], [np.array([[np.inf]])])
    assert math.isnan(comparison.max_rel_error)


def test_another_shape_is_an_error_not_a_broadcast() -> None:
    with pytest.raises(ValueError, match="shape"):
        compare_outputs([np.zeros((2, 1))], [np.zeros((2, 3))])
