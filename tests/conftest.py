"""What all tests share: one thread, fixed seeds, the command line, published weights."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from polarprune import cli
from polarprune_deploy import timing

_TESTS = Path(__file__).resolve().parent
# pytest's importlib mode puts no test folder on the path; reference.py is imported by name.
sys.path.insert(0, str(_TESTS))

# Damage registers itself when it is imported; to be collected it would be imported once more.
collect_ignore = ["mutations"]

settings.register_profile(
    "polarprune",
    deadline=None,  # two cores are shared
    derandomize=True,  # the same examples on every machine
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("polarprune")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Studies when asked for. Slow files first: in the end no worker waits long for another."""
    if "study" not in config.option.markexpr:
        studies = [item for item in items if item.get_closest_marker("study")]
        config.hook.pytest_deselected(items=studies)
        items[:] = [item for item in items if item not in set(studies)]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in one order, and no fight over the cores when tests run in parallel."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def translations_read_once() -> None:
    """torch.onnx parses the source of its 500 translations at each export: half of a small one."""
    for name in [name for name in sys.modules if name.startswith("onnxscript._framework_apis.")]:
        module: Any = sys.modules[name]
        if hasattr(module, "get_torchlib_ops"):
            module.get_torchlib_ops = _once(module.get_torchlib_ops)


@functools.cache
def _once(function: Callable[[], Any]) -> Callable[[], Any]:
    return function if hasattr(function, "cache_info") else functools.cache(function)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """(exit code, stdout, stderr) of the console entry point, called in the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polarprune", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def brief_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real clocks, a moment each: what is tested is what is done with the times."""
    monkeypatch.setattr(timing, "WARM_UP_LIMIT_NS", 1)
    monkeypatch.setattr(timing, "WARM_UP_WINDOW_NS", 10_000_000)
    monkeypatch.setattr(timing, "BLOCK_MS", timing.SHORTEST_BLOCK_MS)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository that holds published weights; not part of a clone."""
    folder = _TESTS.parents[1] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with published weights is absent")
    return folder
