"""The bearer token that requests must bring, where there is one."""

import hmac

from polarprune_deploy.serving.request_errors import UNAUTHORIZED, RequestError

SHORTEST = 16


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
        raise RequestError(
            UNAUTHORIZED, "a token is needed: send the header Authorization: Bearer TOKEN"
        )
