"""Inputs that a network takes; random ones are the same numbers for every side of a comparison."""

from collections.abc import Mapping, Sequence

import numpy as np

from polarprune.errors import ConfigError
from polarprune.manifest import TensorSpec
from polarprune_deploy.backends.runners import Array, Profiled, Runner


def random_inputs(runner: Runner, batch: int, generator: np.random.Generator) -> dict[str, Array]:
    """Standard normal images, or small integers for integer inputs.

    Raises:
        ConfigError: the network does not take this batch size, or leaves another side open.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    inputs: dict[str, Array] = {}
    for spec in runner.inputs:
        first, *rest = spec.shape
        if first not in (-1, batch):
            raise ConfigError(
                f"{runner.name} was exported for batches of {first}, got batch {batch}; "
                "export it with a dynamic batch"
            )
        if any(side < 0 for side in rest):
            raise ConfigError(
                f"input {spec.name} of {runner.name} has the open shape {list(spec.shape)}; "
                "latency needs every side but the batch fixed"
            )
        shape = (batch, *rest)
        dtype = host_dtype(spec.dtype)
        if dtype.kind == "f":
            inputs[spec.name] = generator.standard_normal(shape).astype(dtype)
        else:
            largest = 255 if dtype == np.uint8 else 1  # pixels; an index must be one that exists
            inputs[spec.name] = generator.integers(0, largest + 1, shape).astype(dtype)
    return inputs


def check_inputs(name: str, specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Refuse inputs of other names, types or shapes than the network `name` takes.

    Raises:
        ConfigError: which.
    """
    wanted = {spec.name for spec in specs}
    if set(inputs) != wanted:
        raise ConfigError(f"{name} takes the inputs {sorted(wanted)}, got {sorted(inputs)}")
    for spec in specs:
        array, dtype = inputs[spec.name], host_dtype(spec.dtype)
        fits = array.ndim == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != dtype:
            raise ConfigError(
                f"input {spec.name} of {name} must be {dtype} of shape "
                f"{list(spec.shape)}, got {array.dtype} of shape {list(array.shape)}"
            )


def host_dtype(name: str) -> np.dtype[np.generic]:
    """What numpy holds a tensor in: float32 for bfloat16, which it has not."""
    return np.dtype("float32" if name == "bfloat16" else name)


def inputs_for(runner: Runner, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs of one side in the types of another, which may be of another precision."""
    dtypes = {spec.name: host_dtype(spec.dtype) for spec in runner.inputs}
    return {name: array.astype(dtypes[name], copy=False) for name, array in inputs.items()}


def taken_batches(runner: Runner, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the wanted batch sizes that a runner takes; its own one where it is fixed.

    >>> from types import SimpleNamespace
    >>> from polarprune.manifest import TensorSpec
    >>> fixed = SimpleNamespace(inputs=(TensorSpec("input", "float32", (4, 3, 8, 8)),))
    >>> taken_batches(fixed, (1, 8, 64))
    (4,)
    """
    first = runner.inputs[0].shape[0]
    if first > 0:
        return (first,)
    if not isinstance(runner, Profiled):
        return wanted
    fitting = tuple(size for size in wanted if any(p.min <= size <= p.max for p in runner.profiles))
    return fitting or (runner.profiles[0].opt,)
