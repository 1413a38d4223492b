"""collapse-onnx on images of free size: idle at one size, a crop or a padding at another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_layers import add_conv, kinds, weight
from random_onnx import Build

from polarprune_export import CollapseReport, collapse_onnx
from polarprune_export.onnx_collapse import probing

SIZES = ((64, 64), (33, 35), (65, 64), (40, 97))


def run(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    return session.run(None, {"x": images})


def numbers(b: Build, *given: int) -> str:
    return b.constant(np.array(given))


def size_of(b: Build, value: str, axis: int) -> str:
    return b.one("Gather", [b.one("Shape", [value]), numbers(b, axis)], axis=0)


def cropped(b: Build, x: str, like: str) -> str:
    """x[:, :, : like.shape[2], : like.shape[3]]"""
    for axis in (2, 3):
        ends = size_of(b, like, axis)
        x = b.one("Slice", [x, numbers(b, 0), ends, numbers(b, axis)])
    return x


def pad_to_32(b: Build, x: str) -> str:
    """Behind: zeros up to the next multiple."""
    zero, extra = numbers(b, 0), []
    for axis in (2, 3):
        left = b.one("Sub", [numbers(b, 32), size_of(b, x, axis)])
        extra.append(b.one("Mod", [left, numbers(b, 32)]))
    amounts = b.one("Concat", [*[zero] * 6, *extra], axis=0)
    return b.one("Pad", [x, amounts])


def even(b: Build, x: str) -> str:
    half = b.one("Div", [size_of(b, x, 2), numbers(b, 2)])
    return b.one("Slice", [x, numbers(b, 0), b.one("Mul", [half, numbers(b, 2)]), numbers(b, 2)])


def pooled_and_back(b: Build, x: str) -> str:
    """Half the size, rounded up, and twice that: one more than x where x is odd."""
    half = b.one("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    scales = b.constant(np.array([1, 1, 2, 2], np.float32))
    return b.one("Resize", [half, "", scales], mode="nearest")


def pad_and_crop(b: Build, x: str) -> str:
    return cropped(b, b.one("Neg", [pad_to_32(b, x)]), x)


def pooled_and_cropped(b: Build, x: str) -> str:
    return cropped(b, pooled_and_back(b, x), x)


def joined_by_crop(b: Build, x: str) -> str:
    return b.one("Add", [x, pooled_and_cropped(b, x)])


DYNAMIC: tuple[Callable[[Build, str], str], ...] = (
    even, pad_to_32, pad_and_crop, pooled_and_cropped, joined_by_crop,
)  # fmt: skip


def collapse_and_compare(
    model: onnx.ModelProto, folder: Path, sizes: tuple[tuple[int, int], ...] = SIZES
) -> tuple[CollapseReport, onnx.ModelProto]:
    """Runs both files at sizes that the collapse did not choose."""
    onnx.save(model, folder / "in.onnx")
    report = collapse_onnx(folder / "in.onnx", folder / "out.onnx")
    small = onnx.load(folder / "out.onnx")
    for height, width in sizes:
        images = np.random.default_rng(0).standard_normal((1, 3, height, width)).astype(np.float32)
        for wanted, got in zip(run(model, images), run(small, images), strict=True):
            assert got.shape == wanted.shape, (height, width)
            assert np.abs(got - wanted).max() <= 1e-5 * (np.abs(wanted).max() or 1), (height, width)
    return report, small


def between(step: Callable[[Build, str], str], bias: Any = None, zero: bool = True) -> Build:
    b = Build(0)
    x = add_conv(b, "x", weight(6, 3, 3, zero=(1, 4) if zero else ()), bias, pads=[1] * 4)
    x = step(b, b.one("LeakyRelu", [x]))
    b.last = add_conv(b, x, weight(2, 6))  # type: ignore[attr-defined]
    return b


@pytest.mark.parametrize("bias", [None, np.full(6, 0.5)], ids=["plain", "bias"])
@pytest.mark.parametrize("zero", [True, False], ids=["zeros", "nothing to remove"])
@pytest.mark.parametrize("step", DYNAMIC, ids=lambda step: step.__name__)
def test_crops_and_pads_that_depend_on_the_size_stay(
    step: Callable[[Build, str], str], zero: bool, bias: Any, tmp_path: Path
) -> None:
    b = between(step, bias, zero)
    model = b.model([b.last], x=(3, "h", "w"))  # type: ignore[attr-defined]
    report, small = collapse_and_compare(model, tmp_path)
    assert kinds(small).count("Slice") == kinds(model).count("Slice")
    assert report.pinned == ()
    if not zero:
        assert not report.changed
    elif bias is None or step not in (pad_to_32, pad_and_crop):
        assert report.channels == (8, 6)
    else:
        # 0.5 beside a padding of 0 is no constant, though at 64x64 nothing is padded.
        assert report.channels == (8, 8)


@pytest.mark.parametrize("end", [2**63 - 1, 2**31 - 1, 6], ids=["int64", "int32", "fixed side"])
def test_a_slice_of_all_goes(end: int, tmp_path: Path) -> None:
    def all_of_it(b: Build, x: str) -> str:
        axes = (1, 2) if end != 6 else (1,)
        count = len(axes)
        given = [numbers(b, *[n] * count) for n in (0, end)]
        return b.one("Slice", [x, *given, numbers(b, *axes)])

    b = between(all_of_it)
    model = b.model([b.last], x=(3, "h", "w"))  # type: ignore[attr-defined]
    _, small = collapse_and_compare(model, tmp_path)
    assert "Slice" not in kinds(small)


def test_a_slice_to_the_largest_probed_size_stays(tmp_path: Path) -> None:
    def first_rows(b: Build, x: str) -> str:
        return b.one("Slice", [x, numbers(b, 0), numbers(b, 1000), numbers(b, 2)])

    b = between(first_rows)
    model = b.model([b.last], x=(3, "h", "w"))  # type: ignore[attr-defined]
    _, small = collapse_and_compare(model, tmp_path, ((1001, 8), (64, 64)))
    assert "Slice" in kinds(small)


def test_channels_that_are_sliced_by_a_free_size_stay(tmp_path: Path) -> None:
    def as_many_as_rows(b: Build, x: str) -> str:
        rows = b.one("Min", [size_of(b, x, 2), numbers(b, 6)])
        head = b.one("Slice", [x, numbers(b, 0), rows, numbers(b, 1)])
        return b.one("ReduceMax", [head], axes=[1], keepdims=1)

    b = Build(0)
    x = as_many_as_rows(b, add_conv(b, "x", weight(6, 3, zero=(0, 1)), np.arange(-6.0, 0)))
    model = b.model([add_conv(b, x, weight(2, 1))], x=(3, "h", "w"))
    collapse_and_compare(model, tmp_path, ((64, 64), (4, 64), (1, 5)))


def crop_model(multiple: int) -> onnx.ModelProto:
    """Runs where sides are multiples; then the branches agree."""
    b = Build(0)
    x = add_conv(b, "x", weight(4, 3))
    attributes = {"kernel_shape": [multiple] * 2, "strides": [multiple] * 2}
    scales = b.constant(np.array([1, 1, multiple, multiple], np.float32))
    low = b.one("Resize", [b.one("MaxPool", [x], **attributes), "", scales], mode="nearest")
    return b.model([b.one("Add", [x, low])], x=(3, "h", "w"))


@pytest.mark.parametrize(
    ("multiple", "second"),
    [(1, (129, 161)), (2, (130, 162)), (32, (128, 160)), (64, (128, 192))],
)
def test_the_second_size_is_odd_where_the_model_takes_it(
    multiple: int, second: tuple[int, int]
) -> None:
    first, other = probing.choose_feeds(crop_model(multiple), 0)
    assert first["x"].shape == (2, 3, 64, 64)
    assert other["x"].shape == (3, 3, *second)


def test_a_free_length_is_free(tmp_path: Path) -> None:
    b = Build(0)
    half = b.one("Mul", [b.one("Div", [size_of(b, "x", 2), numbers(b, 2)]), numbers(b, 2)])
    x = b.one("Slice", ["x", numbers(b, 0), half, numbers(b, 2)])
    model = b.model([b.one("Neg", [x])], x=(3, "l"))
    onnx.save(model, tmp_path / "in.onnx")
    report = collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [one["x"] for one in report.inputs] == [(2, 3, 8), (3, 3, 13)]
    assert not report.changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sizes")


@settings(max_examples=30)
@given(seed=st.integers(0, 2**20))
def test_random_graphs_keep_their_sizes(seed: int, folder: Path) -> None:
    b = Build(seed)
    x, channels = "x", 3
    for _ in range(3):
        rows = int(b.random.integers(2, 7))
        w = b.numbers(rows, channels, 3, 3)
        w[b.some(rows)] = 0
        bias = b.numbers(rows) if b.chance(0.5) else None
        edge = int(b.random.integers(2))
        y = b.one("LeakyRelu", [add_conv(b, x, w, bias, pads=[edge] * 4)])
        x, channels = DYNAMIC[int(b.random.integers(len(DYNAMIC)))](b, y), rows
    model = b.model([x], x=(3, "h", "w"))
    collapse_and_compare(model, folder, ((33, 35), (65, 64), (31, 40)))
