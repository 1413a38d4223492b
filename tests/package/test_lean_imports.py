"""Importing a package, reading a manifest and asking for help must not load torch."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "onnxsim", "tensorrt_rtx", "matplotlib"}
HELP = "import sys; sys.argv[1:] = ['--help']; from polarprune.cli import main; main()"


def heavy_modules_after(statement: str) -> set[str]:
    """Which heavy packages a fresh interpreter holds when the statement is done."""
    program = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print('\\n' + json.dumps(sorted(sys.modules))))\n" + statement
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return HEAVY & set(json.loads(answer.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import polarprune",
        "import polarprune_export",
        "import polarprune_deploy",
        "import polarprune.errors",
        "import polarprune.manifest",
        "from polarprune_deploy import load_runner",
        "import polarprune_deploy.serving.http_app, polarprune_deploy.serving.http_routes",
        HELP,
    ],
)
def test_nothing_heavy_is_imported_by(statement: str) -> None:
    assert heavy_modules_after(statement) == set()


def test_the_probe_sees_torch_where_it_is_imported() -> None:
    assert "torch" in heavy_modules_after("from polarprune import attach_gates")
