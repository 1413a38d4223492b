"""What all tests share: one thread, fixed seeds, the command line, published weights."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from polarprune import cli

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: in the end one worker then waits only briefly for another."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in one order, and no fight over the cores when tests run in parallel."""
    torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository that holds published weights; not part of a clone."""
    folder = _TESTS.parents[1] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with published weights is absent")
    return folder
