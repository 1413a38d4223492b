"""The wheel: what is in it, and that it works away from the repository."""

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import polarprune

ROOT = Path(__file__).parents[2]
PACKAGES = {"polarprune", "polarprune_export", "polarprune_deploy"}
DIST_INFO = f"polarprune-{polarprune.__version__}.dist-info"

# Imports every module of the wheel, none of them from the source tree, then uses the data file.
# The dependencies are this environment's.
PROGRAM = """
import importlib, pathlib, pkgutil, sys

wheel, *source_roots = map(pathlib.Path, sys.argv[1:])
elsewhere = [p for p in sys.path if pathlib.Path(p).resolve() not in source_roots]
sys.path[:] = [str(wheel), *elsewhere]
for name in ("polarprune", "polarprune_export", "polarprune_deploy"):
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, name + "."):
        if not found.name.endswith(".__main__"):
            module = importlib.import_module(found.name)
            assert wheel in pathlib.Path(module.__file__).parents, module.__file__
from polarprune.datasets import load_dataset
digits = load_dataset("digits")
print(len(digits.train), len(digits.test))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=120,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_only_names_that_are_ours(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names} == {*PACKAGES, DIST_INFO}


def test_the_wheel_holds_every_file_of_the_packages(names: set[str]) -> None:
    sources = {
        path.relative_to(ROOT / base).as_posix()
        for base, package in (
            ("", "polarprune"),
            ("export", "polarprune_export"),
            ("deploy", "polarprune_deploy"),
        )
        for path in (ROOT / base / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"{package}/py.typed" for package in PACKAGES} < sources
    assert "polarprune/datasets/digits.npz" in sources
    assert names == sources | {
        f"{DIST_INFO}/{name}"
        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{DIST_INFO}/METADATA"))
        entries = archive.read(f"{DIST_INFO}/entry_points.txt").decode()
        licence = archive.read(f"{DIST_INFO}/licenses/LICENSE").decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in licence
    assert "polarprune = polarprune.cli:main" in entries
    # Either wheel of ONNX Runtime overwrites the other: neither may come without being asked for.
    base = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert base
    assert not [r for r in base if r.startswith(("onnxruntime", "tensorrt"))]


def test_the_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    source_roots = [ROOT, ROOT / "export", ROOT / "deploy"]
    answer = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, unpacked, *source_roots],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == ["1437", "360"]
