"""A server in a process of its own: started, waited for, looked at from outside, stopped."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from polarprune.errors import ServerError

HOST = "127.0.0.1"
LOOK_SECONDS = 0.005
PATIENCE_SECONDS = 60.0
LONGEST_TAIL = 300
SERVER = ("-m", "polarprune")


@dataclass(frozen=True)
class ProcessState:
    """What /proc says of a process at one moment.

    Attributes:
        rss_kb: resident memory, kB.
        threads, descriptors: how many.
        cpu_seconds: spent so far, user and system.
    """

    rss_kb: int
    threads: int
    descriptors: int
    cpu_seconds: float


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def document(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)


class ServerProcess:
    """`polarprune serve` on free ports of 127.0.0.1; its log goes to a file."""

    def __init__(
        self, source: Path, log: Path, *options: str, under: Sequence[str] = (),
        program: Sequence[str] = SERVER,
    ) -> None:  # fmt: skip
        """Start it; `source` and `options` are the verb's own words.

        Args:
            log: where its stderr goes, appended.
            under: words in front of the command: another program that becomes it.
            program: Python's words for the server, which takes those of `polarprune`.
        """
        self.log = log
        self._read_from = log.stat().st_size if log.exists() else 0
        self._events: list[dict[str, Any]] = []
        self.started = time.monotonic()
        command = [*under, sys.executable, *program, "serve", str(source)]
        for port in ("--http-port", "--grpc-port", "--metrics-port"):
            if port not in options:
                command += [port, "0"]
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*command, *options], stdout=subprocess.DEVNULL, stderr=stderr
            )
        self.pid = self.process.pid
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Leave nothing running, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def ports(self) -> dict[str, int]:
        """http, and grpc and metrics where there are such.

        Raises:
            ServerError: it ended, or does not listen in time.
        """
        if not self._ports:
            self._wait(lambda: self.events("listening"), 60.0, "listens")
            line = self.events("listening")[-1]
            self._ports = {k: line[k] for k in ("http", "grpc", "metrics") if k in line}
        return self._ports

    @property
    def url(self) -> str:
        """Of HTTP."""
        return f"http://{HOST}:{self.ports['http']}"

    def wait_ready(self) -> float:
        """Wait until every model serves.

        Returns:
            Seconds since the process was started.

        Raises:
            ServerError: it ended, or is not ready in time.
        """
        port = self.ports["http"]
        self._wait(lambda: _status(port, "/v2/health/ready") == 200, 120.0, "is ready")
        return time.monotonic() - self.started

    def events(self, message: str | None = None) -> list[dict[str, Any]]:
        """The lines of its log since it was started, or those with one message."""
        with self.log.open("rb") as file:
            file.seek(self._read_from)
            content = file.read()
        *lines, unfinished = content.split(b"\n")  # the last one may not be whole yet
        self._read_from += len(content) - len(unfinished)
        for line in lines:
            try:
                self._events.append(json.loads(line))
            except ValueError:
                words = line.decode("utf-8", "replace")
                self._events.append({"message": "no JSON", "line": words})
        return [e for e in self._events if message is None or e.get("message") == message]

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, *,
        port: str = "http",
    ) -> Answer:  # fmt: skip
        """The answer to a GET, or to a POST where there is a body, on a connection of its own.

        Raises:
            OSError: nobody answers.
        """
        connection = http.client.HTTPConnection(HOST, self.ports[port], timeout=PATIENCE_SECONDS)
        try:
            verb = "GET" if body is None else "POST"
            connection.request(verb, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), dict(answer.headers.items()))
        finally:
            connection.close()

    def index(self) -> list[dict[str, str]]:
        """The lines of the repository's index."""
        entries: list[dict[str, str]] = self.ask("/v2/repository/index", b"").document
        return entries

    def state(self) -> ProcessState:
        """Memory, threads, descriptors, time.

        Raises:
            OSError: it is gone.
        """
        folder = Path("/proc") / str(self.pid)
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text().splitlines()
        )  # fmt: skip
        times = (folder / "stat").read_text().rpartition(")")[2].split()
        return ProcessState(
            rss_kb=int(status["VmRSS"].split()[0]),
            threads=int(status["Threads"]),
            descriptors=len(list((folder / "fd").iterdir())),
            cpu_seconds=(int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
        )

    def signal(self, number: signal.Signals) -> None:
        """Send one."""
        self.process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit code; negative for the signal that ended it.

        Raises:
            ServerError: it goes on.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ServerError(f"the server has not ended within {seconds:g} s") from None

    def stop(self, seconds: float = 40.0) -> int:
        """SIGTERM, then the exit code.

        Raises:
            ServerError: it goes on.
        """
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait_for(self, message: str, times: int = 1, **about: str) -> dict[str, Any]:
        """The event with this message, and more about it, once there are so many.

        Raises:
            ServerError: it ended before, or there are not in time.
        """

        def found() -> list[dict[str, Any]]:
            return [e for e in self.events(message) if about.items() <= e.items()]

        self._wait(lambda: len(found()) >= times, PATIENCE_SECONDS, f"says {message!r}")
        return found()[times - 1]

    def _wait(self, condition: Callable[[], Any], seconds: float, words: str) -> None:
        end = time.monotonic() + seconds
        while True:
            code = self.process.poll()  # before the look, which finds its last words
            if condition():
                return
            if code is not None or time.monotonic() > end:
                what = f"after {seconds:g} s" if code is None else f"it ended with {code}"
                tail = self.log.read_bytes()[-LONGEST_TAIL:].decode("utf-8", "replace")
                last = (tail.strip().splitlines() or ["nothing on stderr"])[-1]
                raise ServerError(f"no server that {words}, {what}: {last}")
            time.sleep(LOOK_SECONDS)


def _status(port: int, path: str) -> int | None:
    """Of one question; None where nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
