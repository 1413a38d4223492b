"""A bearer token in a file: what a server wants, and what a client brings."""

from pathlib import Path

from polarprune.errors import ConfigError


def read_token(path: Path | None, shortest: int) -> bytes | None:
    """The token in a file, without white space around it; None where there is no file.

    Args:
        shortest: characters; a server takes no token that can be guessed.

    Raises:
        ConfigError: the file cannot be read, or holds something else than one token.
    """
    if path is None:
        return None
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"--token-file {path} cannot be read ({error.strerror}); give a file with a token"
        ) from None
    # Anything else would end the header line, and begin one of its own.
    if len(token) < shortest or not all(32 < byte < 127 for byte in token):
        raise ConfigError(
            f"--token-file {path} must hold one token of printable ASCII without spaces, at least "
            f"{shortest} long, got {len(token)} bytes"
        )
    return token
