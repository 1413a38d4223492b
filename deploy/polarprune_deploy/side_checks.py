"""What must hold before anything is timed: like is compared with like, and outputs are right."""

from collections.abc import Mapping, Sequence

import numpy as np

from polarprune.errors import ConfigError, ParityError
from polarprune_deploy.backends.runners import Array, Referenced, Runner
from polarprune_deploy.timing import Entrant

# Two loads of the same network on the same threads may still sum in another order, and a GPU's
# library may choose another kernel; a lower precision shows more of that.
CONTROL_RELATIVE_ERROR = {"fp16": 5e-3, "bf16": 4e-2}
DEFAULT_CONTROL_ERROR = 1e-5
# Above this, what runs is another network: rounding in every layer, TF32 included, explains less.
REFERENCE_RELATIVE_ERROR = {"fp32": 0.01, "fp16": 0.05, "bf16": 0.2, "int8": 0.2}
REFERENCE_IMAGES = 4


def check_alike(runners: Sequence[Runner], across_precisions: bool) -> None:
    """Both sides differ in the network alone.

    Raises:
        ConfigError: in what they differ.
    """
    against = runners[0]
    for runner in runners[1:]:
        for what, wanted, got in (
            ("backend", against.backend, runner.backend),
            ("device", against.device, runner.device),
            ("precision", against.precision, runner.precision),
            ("settings", dict(against.settings), dict(runner.settings)),
            (
                "inputs",
                _shapes(against, across_precisions),
                _shapes(runner, across_precisions),
            ),
        ):
            if wanted == got or (what == "precision" and across_precisions):
                continue
            advice = "; --across-precisions compares all the same" if what == "precision" else ""
            raise ConfigError(
                f"{runner.name} and {against.name} must have the same {what} to be compared, "
                f"got {got} and {wanted}{advice}"
            )


def _shapes(runner: Runner, across: bool) -> list[tuple[str, str, tuple[int, ...]]]:
    """Inputs as far as both sides must share them: the batch side is settled by the request."""
    return [(spec.name, "" if across else spec.dtype, spec.shape[1:]) for spec in runner.inputs]


def check_outputs(
    against: Entrant,
    pairs: Sequence[tuple[Entrant, Entrant]],
    inputs: Mapping[str, Mapping[str, Array]],
) -> dict[str, float]:
    """Run everybody once on fresh inputs, into output buffers that were poisoned before.

    Args:
        inputs: what each role was prepared with.

    Returns:
        Per role the largest relative error against the runner's float32 reference, if it has one.

    Raises:
        ParityError: an output is not finite, two loads disagree, or a side is not the network that
            it should be; nothing has been timed then.
    """
    for entrant in (against, *(entrant for pair in pairs for entrant in pair)):
        entrant.call()
        for name, output in entrant.call.outputs().items():
            if not np.all(np.isfinite(output)):
                raise ParityError(
                    f"output {name} of {entrant.runner.name} is not finite on random inputs; "
                    "it was not timed: check the network"
                )
    for candidate, control in pairs:
        _check_twins(candidate, control)
    sides = [against, *(candidate for candidate, _ in pairs)]
    errors = {side.role: _reference_error(side, inputs[side.role]) for side in sides}
    return {role: error for role, error in errors.items() if error is not None}


def _check_twins(candidate: Entrant, control: Entrant) -> None:
    allowed = CONTROL_RELATIVE_ERROR.get(candidate.runner.precision, DEFAULT_CONTROL_ERROR)
    again = control.call.outputs()
    for name, output in candidate.call.outputs().items():
        error = np.max(np.abs(output.astype(np.float64) - again[name]), initial=0.0)
        scale = np.max(np.abs(output.astype(np.float64)), initial=0.0)
        if error > allowed * scale:
            raise ParityError(
                f"two loads of {candidate.runner.name} differ by {error:.3g} in output {name} "
                f"(largest value {scale:.3g}); it was not timed: check the backend"
            )


def _reference_error(side: Entrant, inputs: Mapping[str, Array]) -> float | None:
    runner = side.runner
    if not isinstance(runner, Referenced):
        return None
    free = all(spec.shape[0] == -1 for spec in runner.inputs)
    count = REFERENCE_IMAGES if free else None  # a slow reference of a few images tells enough
    expected = runner.expected({name: array[:count] for name, array in inputs.items()})
    if expected is None:
        return None
    got = side.call.outputs()
    largest = 0.0
    for name, reference in expected.items():
        difference = np.abs(got[name][:count].astype(np.float64) - reference)
        scale = float(np.max(np.abs(reference.astype(np.float64)), initial=0.0))
        largest = max(largest, float(np.max(difference, initial=0.0)) / (scale or 1.0))
    allowed = REFERENCE_RELATIVE_ERROR.get(runner.precision, REFERENCE_RELATIVE_ERROR["fp32"])
    if not largest <= allowed:
        raise ParityError(
            f"{runner.name} differs by {largest:.3g} in {runner.precision} from its float32 "
            f"reference, {allowed} allowed; it was not timed: check the network"
        )
    return largest
