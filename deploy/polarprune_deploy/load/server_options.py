"""Options of `bench` that belong to a server, to networks, or to neither."""

from collections.abc import Collection

from polarprune.errors import ConfigError

OF_NETWORKS = (
    "against", "backend", "device", "threads", "mode", "precision", "cache", "builds",
    "across_precisions", "explain", "num_classes",
)  # fmt: skip
OF_SERVERS = ("against_server", "model", "clients", "rate", "seconds", "token_file")


def check_together(given: Collection[str]) -> None:
    """Refuse options that say nothing about what is measured.

    Args:
        given: names of the parameters that were given, `x` being what comes without a name.

    Raises:
        ConfigError: which option, and what it belongs to.
    """
    if "server" not in given:
        if strange := [name for name in OF_SERVERS if name in given]:
            raise ConfigError(f"{_option(strange[0])} belongs to --server URL; give that too")
        if "x" not in given:
            raise ConfigError("give a run, bundle or model to measure, or --server URL")
        return
    if "x" in given:
        raise ConfigError("give a run, bundle or model, or --server URL, not both")
    if strange := [name for name in OF_NETWORKS if name in given]:
        raise ConfigError(f"{_option(strange[0])} says nothing about a server; leave it out")
    if "against_server" in given:
        if "seconds" in given or "rate" in given:
            raise ConfigError(
                "--against-server compares closed loops in --rounds; leave --seconds and --rate out"
            )
    elif "rounds" in given:
        raise ConfigError("--rounds belongs to --against-server, or to networks; give --seconds")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
