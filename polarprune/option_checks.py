"""Values of options that are out of range, refused in the same words everywhere."""

from collections.abc import Collection

from polarprune.errors import ConfigError


def check_choice(option: str, value: object, choices: Collection[str]) -> None:
    """Refuse a word that is none of these.

    Raises:
        ConfigError: it names the option, the value and what there is to choose from.
    """
    if value not in choices:
        raise ConfigError(f"{option} {value!r} is unknown; choose one of: {', '.join(choices)}")


def check_at_least(option: str, value: int | None, least: int = 1) -> None:
    """Refuse a number that is too small; None is an option that is not given.

    Raises:
        ConfigError: it names the option, the bound and the value.
    """
    if value is not None and value < least:
        raise ConfigError(f"{option} must be at least {least}, got {value}")


def check_share(option: str, value: float) -> None:
    """Refuse what is no share of something, 0..1 without 0.

    Raises:
        ConfigError: it names the option and the value.
    """
    if not 0 < value <= 1:
        raise ConfigError(f"{option} must be above 0 and at most 1, got {value:g}")
