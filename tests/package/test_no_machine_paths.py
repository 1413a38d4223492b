"""What is shipped, documented and recorded names no folder of the machine it was made on."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Tests may name such a folder, if only to show that it is refused.
UNCHECKED = ("tests/",)
GENERATED = re.compile(r"(^|/)(\.venv|__pycache__|\.[a-z]+_cache|\.hypothesis|dist)/")
# /mnt/models is no folder of a machine, but where KServe mounts a model in a container.
MACHINE_PATH = re.compile(
    r"(?<![\w.~-])/(?!mnt/models\b)(?:work|farm|tmp|root|home|Users|opt|mnt)/\w"
)


def files_of_the_repository() -> list[str]:
    """Tracked files and those that will be; a source archive has no git and is read whole."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
        listed = [name for name in listed if not GENERATED.search(name)]
    return [name for name in listed if (ROOT / name).is_file()]


def machine_paths(text: str) -> list[str]:
    return [line for line in text.splitlines() if MACHINE_PATH.search(line)]


def test_no_file_names_a_folder_of_a_machine() -> None:
    names = [name for name in files_of_the_repository() if not name.startswith(UNCHECKED)]
    assert "polarprune/__init__.py" in names
    found = {}
    for name in names:
        text = (ROOT / name).read_bytes().decode("utf-8", errors="ignore")
        if lines := machine_paths(text):
            found[name] = lines
    assert found == {}


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ('"data": "/work/data/cifar10"', True),
        ("see /tmp/x", True),
        ("--data /home/me/images", True),
        ("https://example.com/work/page", False),
        ("~/work/images, ../tmp/x, relative/tmp/x", False),
        ("/proc/cpuinfo", False),
        ("polarprune serve /mnt/models", False),
        ("/mnt/modelstore", True),
    ],
)
def test_machine_paths_are_told_from_others(line: str, caught: bool) -> None:
    assert bool(machine_paths(line)) is caught
