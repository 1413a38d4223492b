"""How gates are driven: one method a file, all behind one small protocol (protocol.py)."""

from polarprune.errors import ConfigError
from polarprune.methods.consensus import Consensus
from polarprune.methods.protocol import GateOutput, GateRequest, Method, Units
from polarprune.methods.random import RandomControl

METHODS: dict[str, type[Method]] = {"consensus": Consensus, "random": RandomControl}


def build_method(name: str) -> Method:
    """The method of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in METHODS:
        raise ConfigError(f"method {name!r} is unknown; choose one of: {', '.join(METHODS)}")
    return METHODS[name]()


__all__ = ["METHODS", "GateOutput", "GateRequest", "Method", "Units", "build_method"]
