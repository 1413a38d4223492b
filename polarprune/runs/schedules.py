"""Learning rates as pure functions of progress."""

import math
from collections.abc import Callable

from polarprune.option_values import check_choice

# Share of the steps over which the rate rises.
_WARM_UP = 0.2


def one_cycle(progress: float) -> float:
    """Rises linearly to 1 over the first fifth of the steps, falls linearly to 0 (Smith 2018)."""
    if progress < _WARM_UP:
        return 0.05 + 0.95 * progress / _WARM_UP
    return max(0.0, (1 - progress) / (1 - _WARM_UP))


def cosine(progress: float) -> float:
    """Falls from 1 to 0 along half a cosine, after a rise over the first twentieth."""
    return min(1.0, 0.05 + progress * 19) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


SCHEDULES: dict[str, Callable[[float], float]] = {"one-cycle": one_cycle, "cosine": cosine}


def build_schedule(name: str) -> Callable[[float], float]:
    """Share of the peak rate as a function of progress, 0..1.

    Raises:
        ConfigError: there is no schedule of this name.
    """
    check_choice("--schedule", name, SCHEDULES)
    return SCHEDULES[name]
