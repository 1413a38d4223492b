"""The manifest: what is written is read back, and nothing else is accepted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polarprune.errors import BundleError
from polarprune.manifest import (
    Accuracy,
    BatchProfile,
    CertificateLink,
    EngineInfo,
    FileEntry,
    Manifest,
    Preprocessing,
    TensorSpec,
    check_digest,
    read_manifest,
    read_verified,
    write_manifest,
)

TENSOR = TensorSpec("input", "float32", (-1, 3, 32, 32))
LINK = CertificateLink("a", "b", "real", 8, 1e-5, 2e-7, 1e-7, 1.0, True)
MANIFEST = Manifest(
    name="resnet20",
    precision="fp32",
    base={"model": "resnet20"},
    inputs=(TENSOR,),
    outputs=(TensorSpec("logits", "float32", (-1, 10)),),
    preprocessing=Preprocessing(32, 32, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    classes=("cat", "Hühnchen"),
    batch=BatchProfile(1, 8, 64),
    engine=EngineInfo(
        *("e", "tensorrt_rtx", "1.7", "cards", ("8.6",)),
        *((BatchProfile(1, 1, 1),), (TENSOR,), ()),
    ),
    certificate=(LINK,),
    real_images="8 test images",
    accuracy=Accuracy("digits", 360, 0.98, "onnxruntime"),
    tools={"torch": "2"},
    files={"model.onnx": FileEntry.of(b"content")},
)


def changed(path: list[str | int], value: Any) -> str:
    """The manifest's JSON with one value replaced, or removed where the value is `...`."""
    document = json.loads(MANIFEST.to_json())
    place = document
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(document)


def test_a_manifest_is_read_back_equal_and_written_the_same_way(tmp_path: Path) -> None:
    write_manifest(MANIFEST, tmp_path)
    assert read_manifest(tmp_path) == MANIFEST
    assert read_manifest(tmp_path).to_json() == MANIFEST.to_json()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["schema"], 2, "schema version 2"),
        (["schema"], ..., "no schema version"),
        (["name"], 5, "manifest.name is of the wrong kind"),
        (["name"], ..., "no 'name'"),
        (["surprise"], 1, "unknown 'surprise'"),
        (["inputs", 0, "shape", 1], "3", r"inputs\[0\]\.shape\[1\]"),
        (["batch", "max"], True, "batch.max"),
        (["certificate", 0, "passed"], "yes", "passed"),
        (["engine", "profiles"], None, "engine.profiles"),
        (["files"], [], "manifest.files"),
        (["files", "model.onnx", "sha256"], None, "sha256"),
        (["files", "../model.onnx"], {"sha256": "0", "size": 1}, "plain file name"),
    ],
)
def test_what_is_not_a_manifest_is_refused_in_one_line(
    path: list[str | int], value: Any, words: str
) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        Manifest.from_json(changed(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, b"\xff\xfe\xfa"])
def test_a_broken_text_is_refused(text: str | bytes) -> None:
    with pytest.raises(BundleError):
        Manifest.from_json(text)


def test_null_stands_where_a_fact_is_not_known() -> None:
    for field in ("preprocessing", "engine", "accuracy"):
        assert getattr(Manifest.from_json(changed([field], None)), field) is None


def test_only_listed_and_unchanged_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"content")
    assert read_verified(tmp_path, MANIFEST, "model.onnx") == b"content"
    with pytest.raises(BundleError, match="not listed"):
        read_verified(tmp_path, MANIFEST, "other")
    (tmp_path / "model.onnx").write_bytes(b"c0ntent")
    with pytest.raises(BundleError, match="sha256"):
        read_verified(tmp_path, MANIFEST, "model.onnx")


def test_reading_a_manifest_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, polarprune.manifest; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["inputs", 0, "shape"], [-1, 10**9, 10**9, 10**9], r"inputs\[0\]\.shape is 1000000000"),
        (["inputs", 0, "shape"], [-1, 30_000, 30_000], "at most 268435456 elements"),
        (["inputs", 0, "shape", 1], 0, "from 1 to"),
        (["inputs", 0, "dtype"], "complex64", "it must be one of bfloat16"),
        (["inputs"], [], "at least one tensor"),
        (["batch", "min"], 9, "is .9:8:64., it must be 1 <= min <= opt <= max"),
        (["preprocessing", "std", 1], 0.0, "positive numbers"),
        (["preprocessing", "mean"], [0.5], "a number a channel"),
        (["preprocessing", "height"], 10**6, "from 1 to 65536"),
        (["accuracy", "top1"], 1.5, "from 0 to 1"),
        (["certificate", 0, "n"], -1, "from 0 to"),
        (["certificate", 0, "tolerance"], -1.0, "at least 0"),
        (["engine", "runtime"], "cudnn", "one of tensorrt, tensorrt_rtx"),
        (["engine", "compute_capabilities"], ["8.6; x"], "versions as 8.9"),
        (["files", "model.onnx", "size"], 2**40, "from 0 to 4294967296"),
        (["files", "model.onnx", "sha256"], "0" * 63, "64 hexadecimal digits"),
        (["files", "a\nb"], {"sha256": "0" * 64, "size": 1}, "plain file name"),
        (["schema"], True, "schema version True"),
        (["base", "model"], "x" * 100_000, "100000 characters"),
        (["base", "model"], 10**30, "larger than 64 bits"),
        (["tolerance" * 10_000], 1, "characters"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_short_line(
    path: list[str | int], value: Any, words: str
) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        Manifest.from_json(changed(path, value))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        ('"name": "resnet20"', '"name": "a", "name": "b"', "'name' is there twice"),
        ('"name": "resnet20"', '"name": "\\ud800"', "half a character"),
        ('"tolerance": 1e-05', '"tolerance": NaN', "NaN is no number"),
        ('"tolerance": 1e-05', '"tolerance": 1e999', "inf is not finite"),
        ('"model": "resnet20"', '"model": ' + "[" * 40 + "]" * 40, "nested more than 32 deep"),
    ],
)
def test_what_json_takes_and_a_manifest_does_not(was: str, now: str, words: str) -> None:
    text = MANIFEST.to_json()
    assert was in text
    with pytest.raises(BundleError, match=words):
        Manifest.from_json(text.replace(was, now))


def test_only_plain_files_of_the_folder_itself_are_opened(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (tmp_path / "outside").write_bytes(b"content")
    model = folder / "model.onnx"
    model.symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="a link out of the folder"):
        read_verified(folder, MANIFEST, "model.onnx")
    (folder / "inside").write_bytes(b"content")
    model.unlink()
    model.symlink_to("inside")
    assert read_verified(folder, MANIFEST, "model.onnx") == b"content"
    model.unlink()
    os.mkfifo(model)
    with pytest.raises(BundleError, match="not a regular file"):
        read_verified(folder, MANIFEST, "model.onnx")
    model.unlink()
    model.write_bytes(b"contents")
    for read in (read_verified, check_digest):
        with pytest.raises(BundleError, match="has 8 bytes, the manifest says 7"):
            read(folder, MANIFEST, "model.onnx")
    model.write_bytes(b"c0ntent")
    with pytest.raises(BundleError, match="sha256"):
        check_digest(folder, MANIFEST, "model.onnx")
