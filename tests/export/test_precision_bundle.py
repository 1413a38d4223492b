"""Bundles in every precision: what they state, what verifies again, and what stops them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import fx

from polarprune.datasets import Dataset, load_dataset
from polarprune.errors import ParityError
from polarprune.manifest import Manifest, Preprocessing
from polarprune.manifest_checks import PRECISIONS
from polarprune_export import sensitivity, verify_bundle, write_bundle
from polarprune_export import shipped_model as shipping
from polarprune_export.bundle import ONNX_NAME, BundleContents
from polarprune_export.onnx_session import open_session
from polarprune_export.precisions import STAGES, TOLERANCES

SIDE = 16


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", image_size=SIDE)


@pytest.fixture(autouse=True)
def _undemanding(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained network's classes are close together, and int8 changes one in ten."""
    monkeypatch.setattr(sensitivity, "AGREEMENT", 0.5)


def _write(
    net: fx.GraphModule, folder: Path, data: Dataset | None, precision: str, **contents: object
) -> Manifest:
    steps = None
    if data is not None:
        steps = Preprocessing(SIDE, SIDE, data.resize_side, tuple(data.mean), tuple(data.std))
    stated = BundleContents("net", preprocessing=steps, data=data, precision=precision, **contents)  # type: ignore[arg-type]
    return write_bundle(net, folder, torch.randn(2, 3, SIDE, SIDE), stated)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("embed", [False, True], ids=["images", "pixels"])
def test_it_verifies_and_says_what_it_is(
    plain: fx.GraphModule, tmp_path: Path, digits: Dataset, precision: str, embed: bool
) -> None:
    manifest = _write(plain, tmp_path / "b", digits, precision, embed_preprocess=embed)
    assert manifest.precision == precision
    [spec] = manifest.inputs
    assert (spec.dtype, spec.shape[1:]) == (
        ("uint8", (SIDE, SIDE, 3)) if embed else ("float32", (3, SIDE, SIDE))
    )
    assert manifest.outputs[0].dtype == "float32"
    assert manifest.preprocessing is not None
    assert manifest.preprocessing.embedded is embed
    stages = [link.stage for link in manifest.certificate]
    assert stages[0] == STAGES["fp32"]
    assert stages[-1] == STAGES[precision] + (", pixels in" if embed else "")
    assert manifest.accuracy is not None
    assert ("emulated" in manifest.accuracy.measured_with) is (precision in ("fp16", "bf16"))
    if precision != "fp32":
        assert manifest.accuracy_before is not None
        top1 = manifest.accuracy_before.top1
        assert top1 is not None
        assert manifest.accuracy.top1 == pytest.approx(
            top1, abs=0.05 if precision == "int8" else 0.02
        )
    found = verify_bundle(tmp_path / "b")
    assert {link["tolerance"] for link in found["parity"]} == {TOLERANCES[precision]}
    kinds = {link["inputs"] for link in found["parity"]}
    assert kinds == ({"real"} if precision == "int8" else {"random", "real"})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rebuilding_gives_the_same_bytes(
    plain: fx.GraphModule, tmp_path: Path, digits: Dataset, precision: str
) -> None:
    for name in ("one", "two"):
        _write(plain, tmp_path / name, digits, precision, embed_preprocess=True)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_without_images_the_certificate_rests_on_noise(
    plain: fx.GraphModule, tmp_path: Path, precision: str
) -> None:
    manifest = _write(plain, tmp_path / "b", None, precision)
    assert manifest.accuracy is None
    assert [link.inputs for link in manifest.certificate] == ["random", "random"]
    assert verify_bundle(tmp_path / "b")["passed"]


def test_a_drop_beyond_the_bound_stops_the_export(
    plain: fx.GraphModule,
    tmp_path: Path,
    digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = shipping.lower_precision

    def spoiled(model: onnx.ModelProto, *rest: object) -> object:
        lowered = whole(model, *rest)  # type: ignore[arg-type]
        for tensor in lowered.model.graph.initializer:
            if tensor.name == "head.bias":  # one class is always the answer
                values = onnx.numpy_helper.to_array(tensor).copy()
                values[3] += 2
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return lowered

    monkeypatch.setattr(shipping, "lower_precision", spoiled)
    monkeypatch.setitem(TOLERANCES, "int8", 1e3)  # so that only the accuracy can tell
    with pytest.raises(
        ParityError, match=r"top-1 on .* points below that of the network in float32 before export"
    ):
        _write(plain, tmp_path / "b", digits, "int8", max_accuracy_drop=0.5)
    assert not (tmp_path / "b").exists()
    assert not list(tmp_path.iterdir())


def test_the_served_graph_normalises_the_test_images_itself(
    plain: fx.GraphModule, tmp_path: Path, digits: Dataset
) -> None:
    _write(plain, tmp_path / "b", digits, "fp32", embed_preprocess=True)
    pixels, _ = digits.test.raw(16)
    session = open_session((tmp_path / "b" / ONNX_NAME).read_bytes())
    got = session.run(None, {"input": pixels.numpy()})[0]
    images, _ = next(digits.test.batches(len(digits.test), shuffle_seed=None, augment=False))
    rows = np.unique(np.linspace(0, len(digits.test) - 1, 16).astype(int))
    with torch.no_grad():
        whole = plain(images)
    # Each served answer is one of the answers of training's own pipeline.
    distance = np.abs(got[:, None] - whole.numpy()[None]).max(axis=2).min(axis=1)
    assert distance.max() < 1e-3
    assert len(rows) == 16


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_batch_size_is_that_of_the_file_too(
    plain: fx.GraphModule, tmp_path: Path, digits: Dataset, precision: str
) -> None:
    steps = Preprocessing(SIDE, SIDE, digits.resize_side, tuple(digits.mean), tuple(digits.std))
    contents = BundleContents("net", steps, data=digits, precision=precision)
    example = torch.randn(2, 3, SIDE, SIDE)
    manifest = write_bundle(plain, tmp_path / "b", example, contents, batch=(3, 3, 3))
    assert manifest.inputs[0].shape == (3, 3, SIDE, SIDE)
    assert manifest.outputs[0].shape[0] == 3
    assert manifest.certificate[-1].stage == f"{STAGES[precision]}, batches of 3"
    assert manifest.accuracy is not None
    assert manifest.accuracy.n == len(digits.test)
    assert verify_bundle(tmp_path / "b")["passed"]
    session = open_session((tmp_path / "b" / ONNX_NAME).read_bytes())
    assert session.get_inputs()[0].shape[0] == 3
    with pytest.raises(Exception, match="dimension"):
        session.run(None, {"input": np.zeros((2, 3, SIDE, SIDE), np.float32)})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_is_built_of_it(
    plain: fx.GraphModule, tmp_path: Path, digits: Dataset, precision: str
) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    steps = Preprocessing(SIDE, SIDE, digits.resize_side, tuple(digits.mean), tuple(digits.std))
    contents = BundleContents(
        "net", steps, data=digits, precision=precision, embed_preprocess=precision == "int8"
    )
    example = torch.randn(2, 3, SIDE, SIDE)
    manifest = write_bundle(plain, tmp_path / "b", example, contents, engine="tensorrt_rtx")
    assert manifest.engine is not None
    assert manifest.engine.inputs[0].dtype == manifest.inputs[0].dtype
    assert manifest.engine.outputs[0].dtype == "float32"
    assert manifest.certificate[-1].against.startswith(STAGES[precision])
    assert manifest.certificate[-1].passed is None
