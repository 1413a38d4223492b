"""Refuses an option's value that is none of those it may have, always in the same words."""

from collections.abc import Collection, Mapping

from polarprune.errors import ConfigError


def check_choice(option: str, value: object, allowed: Collection[str]) -> None:
    """Refuse a word that is not one of those allowed.

    Args:
        option: as the user types it, with its dashes; in Python the argument's name.

    Raises:
        ConfigError: the option, what it may be, and what was got.

    >>> check_choice("--device", "gpu", ("cpu", "cuda"))
    Traceback (most recent call last):
    polarprune.errors.ConfigError: --device must be one of cpu, cuda, got 'gpu'
    """
    if value not in allowed:
        raise ConfigError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")


def check_range(
    option: str, value: float | None, low: float, high: float = float("inf"), unit: str = ""
) -> None:
    """Refuse a number below the lowest or above the highest; NaN too. None was not given.

    Args:
        option: as the user types it, with its dashes; in Python the argument's name.
        unit: of the numbers, with a space before it.

    Raises:
        ConfigError: the option, its range, and what was got.

    >>> check_range("--threads", 0, 1)
    Traceback (most recent call last):
    polarprune.errors.ConfigError: --threads must be at least 1, got 0
    """
    if value is not None and not low <= value <= high:
        wanted = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise ConfigError(f"{option} must be {wanted}{unit}, got {value}")


def check_share(option: str, value: float) -> None:
    """Refuse what is no share of something, 0..1 without 0.

    Raises:
        ConfigError: the option, its range, and what was got.
    """
    if not 0 < value <= 1:
        raise ConfigError(f"{option} must be above 0 and at most 1, got {value:g}")


def refuse_given(options: Mapping[str, object], why: str) -> None:
    """Refuse options that mean nothing here.

    Args:
        options: what was given for each; None was not.

    Raises:
        ConfigError: the first that was given.

    >>> refuse_given({"--weights": None, "--gpus": 1}, "belongs to a model, and run is a run")
    Traceback (most recent call last):
    polarprune.errors.ConfigError: --gpus belongs to a model, and run is a run; leave it out
    """
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option} {why}; leave it out")
