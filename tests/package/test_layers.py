"""deploy imports export, export imports the core, never the reverse."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("polarprune", "export/polarprune_export", "deploy/polarprune_deploy")


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter with the pyproject.toml and the packages of `root`."""
    paths = os.pathsep.join(str(root / source) for source in (".", "export", "deploy"))
    command = "from importlinter.cli import lint_imports_command as lint; lint()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def copied_sources(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in SOURCES:
        shutil.copytree(
            ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def test_the_layers_hold() -> None:
    answer = lint_imports(ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("module", "import_line"),
    [
        ("polarprune/errors.py", "import polarprune_export"),
        ("polarprune/errors.py", "from polarprune_deploy import runners"),
        ("export/polarprune_export/folding.py", "import polarprune_deploy.backends.runners"),
    ],
    ids=["core imports export", "core imports deploy", "export imports deploy"],
)
def test_an_import_against_the_layers_is_caught(
    copied_sources: Path, module: str, import_line: str
) -> None:
    with (copied_sources / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{import_line}\n")
    answer = lint_imports(copied_sources)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert "never back BROKEN" in answer.stdout
