"""Bundles: whole or absent, rebuilt byte for byte, and every damage noticed."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from torch import Tensor, fx

from polarprune.datasets import load_dataset
from polarprune.errors import BackendUnavailable, BundleError, ConfigError, ParityError, Refused
from polarprune.manifest import (
    CertificateLink,
    FileEntry,
    Preprocessing,
    read_manifest,
    read_verified,
    write_manifest,
)
from polarprune_export import verify_bundle, write_bundle
from polarprune_export.bundle import NO_REAL_IMAGES, BundleContents
from polarprune_export.engine_description import fingerprint_of
from polarprune_export.parity_samples import normalise_pixels


def relist(bundle: Path, name: str) -> None:
    """Writes the present digest of a file into the manifest, as a forger would."""
    manifest = read_manifest(bundle)
    files = {**manifest.files, name: FileEntry.of((bundle / name).read_bytes())}
    engine = manifest.engine
    assert engine is not None
    fingerprint = fingerprint_of(engine, files["model.onnx"].sha256)
    engine = dataclasses.replace(engine, fingerprint=fingerprint)
    write_manifest(dataclasses.replace(manifest, files=files, engine=engine), bundle)


def test_a_bundle_holds_what_its_manifest_says(bundle: Path) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "model.tensorrt_rtx.engine",
        "parity.safetensors",
    ]
    report = verify_bundle(bundle)
    assert report["passed"] is True
    assert report["unlisted"] == []
    manifest = read_manifest(bundle)
    assert manifest.engine is not None
    assert manifest.engine.file == "model.tensorrt_rtx.engine"
    assert [tensor.shape for tensor in manifest.inputs] == [(-1, 3, 32, 32)]
    assert manifest.precision == "fp32"
    assert manifest.classes == tuple("abcdefghij")


def test_the_chain_says_what_was_not_run_and_that_no_real_images_were_seen(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    onnx_link, engine_link = manifest.certificate
    assert onnx_link.passed is True
    assert engine_link.passed is None
    assert engine_link.note is not None
    assert engine_link.note.startswith("not run here: ")
    assert manifest.real_images == NO_REAL_IMAGES


def test_an_edited_onnx_is_caught_by_its_digest(bundle: Path) -> None:
    path = bundle / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx does not have the sha256") as caught:
        verify_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "model.tensorrt_rtx.engine", "parity.safetensors"])
def test_a_truncated_file_is_caught_by_its_size(bundle: Path, name: str) -> None:
    path = bundle / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{len(content) - 1} bytes, the manifest says"):
        verify_bundle(bundle)
    path.write_bytes(content + b"x")
    with pytest.raises(BundleError, match=f"{len(content) + 1} bytes, the manifest says"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "model.tensorrt_rtx.engine"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        verify_bundle(bundle)


def test_an_engine_of_another_graph_is_refused(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.engine is not None
    model = onnx.load(bundle / "model.onnx")
    model.doc_string = "another file"
    onnx.save(model, bundle / "model.onnx")
    files = {**manifest.files, "model.onnx": FileEntry.of((bundle / "model.onnx").read_bytes())}
    write_manifest(dataclasses.replace(manifest, files=files), bundle)
    with pytest.raises(BundleError, match=r"was not built from this model\.onnx"):
        verify_bundle(bundle)
    # A bundle of an older version does not say what its engine was built from.
    document = json.loads((bundle / "manifest.json").read_text())
    del document["engine"]["fingerprint"], document["engine"]["flags"]
    (bundle / "manifest.json").write_text(json.dumps(document))
    assert verify_bundle(bundle)["passed"] is True


def change_a_weight(path: Path, model: onnx.ModelProto) -> None:
    (tensor,) = [t for t in model.graph.initializer if t.name == "head.bias"]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 0.01, tensor.name))
    onnx.save(model, path)


def plant_an_identity(path: Path, model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(onnx.helper.make_node("Identity", ["inner"], ["logits"], name="gate"))
    onnx.save(model, path)


def store_weights_beside(path: Path, model: onnx.ModelProto) -> None:
    onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0)


@pytest.mark.parametrize(
    ("forge", "error", "words"),
    [
        (change_a_weight, ParityError, "stored reference"),
        (plant_an_identity, Refused, "Identity 'gate'"),
        (store_weights_beside, BundleError, "model.onnx"),
    ],
)
def test_a_forged_digest_does_not_help(
    bundle: Path, forge: Callable[..., None], error: type[Exception], words: str
) -> None:
    forge(bundle / "model.onnx", onnx.load(bundle / "model.onnx"))
    relist(bundle, "model.onnx")
    with pytest.raises(error, match=words):
        verify_bundle(bundle)


def test_a_broken_link_of_the_chain_fails_the_bundle(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    broken = dataclasses.replace(manifest.certificate[0], passed=False)
    write_manifest(dataclasses.replace(manifest, certificate=(broken,)), bundle)
    with pytest.raises(BundleError, match="chain is broken"):
        verify_bundle(bundle)


def test_a_manifest_cannot_lead_outside_its_folder(bundle: Path) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    for name in ("../secret", "/etc/hostname", "a/b", "..", ""):
        changed = {**document, "files": {name: {"sha256": "0" * 64, "size": 1}}}
        path.write_text(json.dumps(changed))
        with pytest.raises(BundleError, match="plain file name"):
            verify_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": list("abcdefghijk")}, "names 11 classes, the model has 10 outputs"),
        ({"precision": "fp16"}, "says fp16, model.onnx is fp32"),
        ({"preprocessing": {"height": 99}}, r"makes images of \(3, 99, 32\), the model takes"),
        ({"preprocessing": {"interpolation": "lanczos"}}, "preprocessing.interpolation"),
        ({"preprocessing": {"antialias": False}}, "preprocessing.exif_transpose and antialias"),
        ({"preprocessing": {"scale": 1.0}}, "preprocessing.scale"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_manifest_that_contradicts_its_model_is_refused(
    bundle: Path, change: dict[str, Any], words: str
) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    for key, value in change.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=words):
        verify_bundle(bundle)


def test_samples_that_lack_a_tensor_are_refused(bundle: Path) -> None:
    tensors = load_file(bundle / "parity.safetensors")
    del tensors["random_inputs"]
    save_file(tensors, bundle / "parity.safetensors")
    relist(bundle, "parity.safetensors")
    with pytest.raises(BundleError, match="random_inputs"):
        verify_bundle(bundle)


def test_files_nobody_vouches_for_are_listed(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    assert verify_bundle(bundle)["unlisted"] == ["notes.txt"]


def test_the_same_network_gives_the_same_bundle_byte_for_byte(
    plain: fx.GraphModule, example: Tensor, contents: BundleContents, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        write_bundle(plain, tmp_path / name, example, contents)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.usefixtures("written_before")
def test_a_bundle_is_replaced_and_nothing_else_is(
    plain: fx.GraphModule, example: Tensor, contents: BundleContents, bundle: Path
) -> None:
    write_bundle(plain, bundle, example, contents)
    assert read_manifest(bundle).engine is None
    assert not (bundle / "model.tensorrt_rtx.engine").exists()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    foreign = bundle.parent / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years")
    with pytest.raises(BundleError, match="not empty and is not a bundle"):
        write_bundle(plain, foreign, example, contents)
    with pytest.raises(BundleError, match="is a file"):
        write_bundle(plain, foreign / "thesis.tex", example, contents)
    assert (foreign / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("step", ["lint_onnx", "build_engine", "write_manifest"])
@pytest.mark.usefixtures("written_before")
def test_a_failure_at_any_step_leaves_what_was_there(
    step: str,
    plain: fx.GraphModule,
    example: Tensor,
    contents: BundleContents,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Refused("planted")

    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    monkeypatch.setattr(f"polarprune_export.bundle.{step}", fail)
    for folder in (bundle, bundle.parent / "new"):
        with pytest.raises(Refused, match="planted"):
            write_bundle(plain, folder, example, contents, engine="tensorrt_rtx")
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("written_before")
def test_a_broken_cut_stops_the_export(
    plain: fx.GraphModule, example: Tensor, contents: BundleContents, tmp_path: Path
) -> None:
    cut = CertificateLink("cut at step 7", "gated", "real", 4, 1e-9, 0.1, 0.2, 0.5, False)
    with pytest.raises(ParityError, match="cut at step 7"):
        write_bundle(plain, tmp_path / "out", example, dataclasses.replace(contents, cuts=[cut]))
    assert not (tmp_path / "out").exists()


def test_without_onnxruntime_nothing_is_started(
    plain: fx.GraphModule,
    example: Tensor,
    contents: BundleContents,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'polarprune\[cpu\]'"):
        write_bundle(plain, bundle.parent / "new", example, contents)
    with pytest.raises(BackendUnavailable, match=r"pip install 'polarprune\[cpu\]'"):
        verify_bundle(bundle)


@pytest.mark.usefixtures("written_before")
def test_real_images_are_stored_compared_and_scored(
    plain: fx.GraphModule, example: Tensor, tmp_path: Path
) -> None:
    data = load_dataset("digits")
    preprocessing = Preprocessing(32, 32, 32, data.mean, data.std)
    contents = BundleContents(
        "digits", preprocessing, data.classes, data=data, max_accuracy_drop=0.0
    )
    manifest = write_bundle(plain, tmp_path / "out", example, contents)
    assert [(link.inputs, link.n) for link in manifest.certificate] == [
        ("random", 8),
        ("real", 256),
    ]
    assert manifest.real_images == "256 test images of digits"
    assert manifest.accuracy is not None
    assert manifest.accuracy.n == len(data.test) == 360
    right = 0
    for images, labels in data.test.batches(90, shuffle_seed=None, augment=False):
        with torch.no_grad():
            right += int((plain(images).argmax(1) == labels).sum())
    assert manifest.accuracy.top1 == right / 360
    checked = verify_bundle(tmp_path / "out")["parity"]
    assert [(link["inputs"], link["n"]) for link in checked] == [("random", 8), ("real", 8)]


def test_stored_pixels_are_normalised_as_the_data_set_does_it() -> None:
    data = load_dataset("digits")
    pixels, _ = data.test.raw(len(data.test))
    images, _ = next(iter(data.test.batches(len(data.test), shuffle_seed=None, augment=False)))
    got = normalise_pixels(pixels.numpy(), Preprocessing(32, 32, 32, data.mean, data.std))
    # Two float32 roundings apart; the values reach about 3.
    assert np.abs(got - images.numpy()).max() < 1e-5


def test_a_bounded_accuracy_drop_needs_a_data_set(
    plain: fx.GraphModule, example: Tensor, contents: BundleContents, tmp_path: Path
) -> None:
    bounded = dataclasses.replace(contents, max_accuracy_drop=1.0)
    with pytest.raises(ConfigError, match="--data"):
        write_bundle(plain, tmp_path / "out", example, bounded)


def test_a_file_is_read_once_and_its_bytes_returned(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    original = Path.open

    def counting(self: Path, *args: str) -> object:
        opened.append(self.name)
        return original(self, *args)

    manifest = read_manifest(bundle)
    monkeypatch.setattr(Path, "open", counting)
    content = read_verified(bundle, manifest, "model.onnx")
    assert opened == ["model.onnx"]
    assert FileEntry.of(content) == manifest.files["model.onnx"]


LEAN = """
import sys
import polarprune_export, polarprune.manifest
assert "torch" not in sys.modules and "onnx" not in sys.modules
print(polarprune_export.verify_bundle(sys.argv[1])["passed"])
assert "torch" not in sys.modules, "verifying needs torch"
assert "tensorrt_rtx" not in sys.modules, "an engine was touched"
"""


def test_a_bundle_is_verified_without_torch_or_tensorrt(pristine_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAN, os.fspath(pristine_bundle)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "True"
