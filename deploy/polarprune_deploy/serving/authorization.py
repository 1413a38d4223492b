"""The bearer token that requests must bring, where there is one."""

import hmac
from pathlib import Path

from polarprune.errors import ConfigError
from polarprune_deploy.serving.request_errors import UNAUTHORIZED, RequestError

SHORTEST = 16


def read_token(path: Path | None) -> bytes | None:
    """The token in a file, without white space around it.

    Raises:
        ConfigError: the file cannot be read, or holds no token of 16 printable characters or more.
    """
    if path is None:
        return None
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"the token file {path} cannot be read ({error.strerror})") from None
    if len(token) < SHORTEST or not all(32 < byte < 127 for byte in token):
        raise ConfigError(
            f"{path} must hold one token of at least {SHORTEST} printable characters, no spaces"
        )
    return token


def check_token(token: bytes | None, given: bytes | None) -> None:
    """Compare without telling by the time how much was right.

    Args:
        token: what is wanted; None wants nothing.
        given: of the `authorization` header.

    Raises:
        RequestError: UNAUTHORIZED.
    """
    if token is None:
        return
    scheme, _, brought = (given or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(brought.strip(), token):
        raise RequestError(UNAUTHORIZED, "bring the token: Authorization: Bearer ...")
