"""The one way in which a request is answered with anything but its result."""

from collections.abc import Mapping
from types import MappingProxyType

BAD = "bad request"
"""What was sent cannot be understood, or does not fit the model."""
UNAUTHORIZED = "unauthorized"
UNKNOWN = "unknown"
"""No such model, version or route."""
WRONG_METHOD = "wrong method"
TOO_LARGE = "too large"
UNSUPPORTED = "unsupported"
"""An image or encoding of a kind that is not read here."""
REJECTED = "rejected"
"""The queue is full, or the server is loading or draining: worth another try."""
LATE = "late"
"""The request's own deadline passed before its turn came."""
CANCELED = "canceled"
"""The sender has gone."""
BROKEN = "broken"
"""The model failed on a request that was in order: ours to repair."""

HTTP_STATUS: Mapping[str, int] = MappingProxyType(
    {
        BAD: 400,
        UNAUTHORIZED: 401,
        UNKNOWN: 404,
        WRONG_METHOD: 405,
        TOO_LARGE: 413,
        UNSUPPORTED: 415,
        CANCELED: 499,
        BROKEN: 500,
        REJECTED: 503,
        LATE: 503,
    }
)
GRPC_STATUS: Mapping[str, str] = MappingProxyType(
    {
        BAD: "INVALID_ARGUMENT",
        UNAUTHORIZED: "UNAUTHENTICATED",
        UNKNOWN: "NOT_FOUND",
        WRONG_METHOD: "UNIMPLEMENTED",
        TOO_LARGE: "RESOURCE_EXHAUSTED",
        UNSUPPORTED: "UNIMPLEMENTED",
        CANCELED: "CANCELLED",
        BROKEN: "INTERNAL",
        REJECTED: "UNAVAILABLE",
        LATE: "DEADLINE_EXCEEDED",
    }
)
"""TOO_LARGE as gRPC itself says it of a message beyond its bound."""
UNFORESEEN = "the server failed on this request"
"""All that a sender is told of an exception that nobody expected."""


class RequestError(Exception):
    """A request that gets no result.

    Attributes:
        kind: one of the words of this module.
        retry_after: seconds until another try may be worth it; None where it is not.
        counted: whether it is in the model's counters already.
    """

    def __init__(self, kind: str, message: str, retry_after: int | None = None) -> None:
        """Take the words for the sender; they are sent as they are."""
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after
        self.counted = False

    @property
    def status(self) -> int:
        """Of HTTP."""
        return HTTP_STATUS[self.kind]
