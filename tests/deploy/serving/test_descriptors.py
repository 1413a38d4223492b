"""The limit of open files is raised in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from polarprune_deploy.serving.descriptors import allow_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
enough = allow_descriptors({connections})
print(enough, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "answer"),
    [
        (64, 4096, 100, "True 456"),
        (1000, 4096, 100, "True 1000"),
        (64, 300, 100, "False 300"),
    ],
)
def test_the_soft_limit_goes_as_far_as_it_must_and_may(
    soft: int, hard: int, connections: int, answer: str
) -> None:
    program = PROGRAM.format(soft=soft, hard=hard, connections=connections)
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout.strip() == answer
