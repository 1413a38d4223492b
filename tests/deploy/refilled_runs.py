"""What is asked of a prepared run of every backend that takes other inputs."""

import numpy as np

from polarprune_deploy.backends.input_making import random_inputs
from polarprune_deploy.backends.runners import RefillableRun, Runner


def check_refills(runner: Runner) -> None:
    """Other inputs are copied in, give what they give alone, and nobody else's array is written."""
    generator = np.random.default_rng(0)
    first, second = (random_inputs(runner, 2, generator) for _ in range(2))
    given = {name: array.copy() for name, array in first.items()}
    prepared = runner.prepare(first)
    assert isinstance(prepared, RefillableRun)
    for inputs in (second, given, second):
        prepared.refill(inputs)
        prepared()
        for name, expected in runner.run(inputs).items():
            np.testing.assert_array_equal(prepared.outputs()[name], expected)
    np.testing.assert_array_equal(first["input"], given["input"])
