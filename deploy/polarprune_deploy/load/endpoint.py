"""Where a server is, and the plain questions that are asked of it before any load."""

import http.client
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polarprune.errors import ConfigError, ServerError, first_line, quote
from polarprune.files.strict_json import parse_strict
from polarprune_deploy.token_files import read_token

PATIENCE_SECONDS = 30.0
"""How long nothing may come from a server that owes an answer."""

LARGEST_DOCUMENT = 1 << 22
"""Bytes of metadata that are read."""


@dataclass(frozen=True)
class Endpoint:
    """A server's address.

    Attributes:
        url: as people read it, without a slash at its end.
        prefix: the path in front of `/v2`, "" or "/models".
        token: what the Authorization header bears, if anything.
    """

    url: str
    host: str
    port: int
    secure: bool
    prefix: str
    token: str | None = field(default=None, repr=False)

    def head(self, verb: str, path: str, *fields: str) -> bytes:
        """The head of a request, up to and with the empty line."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{verb} {self.prefix}{path} HTTP/1.1", f"Host: {name}:{self.port}", *fields]
        if self.token is not None:
            lines.append(f"Authorization: Bearer {self.token}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    def ask(self, verb: str, path: str) -> tuple[int, bytes]:
        """Status and body of one question without a body of its own, on a connection of its own.

        Raises:
            ServerError: nobody answers, or not in HTTP.
        """
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        connection: http.client.HTTPConnection
        if self.secure:
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=PATIENCE_SECONDS)
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(verb, self.prefix + path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(LARGEST_DOCUMENT + 1)
        except http.client.HTTPException as error:
            raise ServerError(
                f"{self.url} does not answer in HTTP/1.1 ({type(error).__name__}: "
                f"{quote(str(error))}); is it the HTTP port?"
            ) from None
        except OSError as error:
            raise self.unreachable(error) from None
        finally:
            connection.close()

    def document(self, verb: str, path: str) -> tuple[int, Any]:
        """Status and JSON of such a question; what is no JSON comes as the bytes that it is.

        Raises:
            ServerError: as `ask`.
        """
        status, body = self.ask(verb, path)
        try:
            return status, parse_strict(body, LARGEST_DOCUMENT)
        except ValueError:
            return status, body

    def address(self) -> tuple[str, int]:
        """The numeric address that answers, so that no connection under load looks a name up.

        Raises:
            ServerError: nobody answers.
        """
        try:
            with socket.create_connection((self.host, self.port), PATIENCE_SECONDS) as probe:
                host, port, *_ = probe.getpeername()
        except OSError as error:
            raise self.unreachable(error) from None
        return host, port

    def unreachable(self, error: OSError) -> ServerError:
        """The exception for a connection that could not be made, or broke."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return ServerError(
                f"the certificate of {self.url} is not trusted here ({error.verify_message}); "
                "SSL_CERT_FILE names further authorities"
            )
        if isinstance(error, ssl.SSLError):
            return ServerError(f"{self.url} does not speak TLS ({reason_of(error)}); try http://")
        return ServerError(f"no answer from {self.url}: {reason_of(error)}; is the server running?")


def reason_of(error: OSError) -> str:
    """What went wrong with a socket, in few words."""
    if isinstance(error, TimeoutError):
        return f"nothing within {PATIENCE_SECONDS:.0f} s"
    if isinstance(error, ssl.SSLError):
        return error.reason or type(error).__name__
    return error.strerror or first_line(error)


def parse_endpoint(url: str, token_file: Path | None = None) -> Endpoint:
    """The endpoint of a URL.

    Args:
        url: http://host:port or https://host:port, with a path where /v2 lies below one.
        token_file: holds the bearer token, and nothing else.

    Raises:
        ConfigError: no such URL, or no such token.

    >>> parse_endpoint("http://localhost:8000/").url
    'http://localhost:8000'
    """
    parts = _split(url)
    path = parts.path.rstrip("/").removesuffix("/v2")
    if not path.isascii() or any(character <= " " for character in path):
        raise ConfigError(f"the path of a server is plain ASCII, got {quote(url)}")
    secure = parts.scheme == "https"
    token = read_token(token_file, 1)
    return Endpoint(
        url=f"{parts.scheme}://{parts.netloc}{path}",
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 80),
        secure=secure,
        prefix=path,
        token=None if token is None else token.decode(),
    )


def _split(url: str) -> Any:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        sound = sound and (parts.hostname or "").isascii() and url.isprintable() and " " not in url
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(f"a server is http://HOST:PORT or https://HOST:PORT, got {quote(url)}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            "a server's URL has no user, query or fragment (a token goes into a file, --token-file)"
        )
    return parts
