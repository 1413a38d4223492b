"""The manifest: what is written is read back, and nothing else is accepted."""

import json
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
