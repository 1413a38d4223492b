"""`polarprune serve` as its own process, as a browser meets it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds; other tests share the two cores."""


@dataclass
class PageServer:
    """A server that listens; `log` grows."""

    process: subprocess.Popen[str]
    log: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of a GET, or of a POST where there is a body."""
        request = urllib.request.Request(self.url + path, body, dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def said(self, message: str) -> list[dict[str, Any]]:
        """The log's lines of a message."""
        return [line for line in self.log if line["message"] == message]

    def terminate(self) -> None:
        """SIGTERM; the server drains."""
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def page_server(source: Path, *options: str, settled: bool = True) -> Iterator[PageServer]:
    """A server of the bundles in a folder, on a free port.

    Args:
        settled: wait until each bundle is served or was refused.
    """
    command = [
        *(sys.executable, "-m", "polarprune", "serve", str(source), "--backend", "onnxruntime"),
        *("--http-port", "0", "--grpc-port", "-1", "--metrics-port", "-1", "--threads", "1"),
        *options,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    server = PageServer(process)
    assert process.stderr is not None
    reader = threading.Thread(target=_read, args=(process.stderr, server.log))
    reader.start()
    try:
        (line,) = _wait(lambda: server.said("listening"), server)
        server.url = f"http://127.0.0.1:{line['http']}"
        count = sum(1 for manifest in source.rglob("manifest.json"))
        if settled:
            _wait(lambda: len(server.said("serving")) + len(_refused(server)) >= count, server)
        yield server
    finally:
        if process.poll() is None:
            server.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            reader.join(PATIENCE)
            process.stderr.close()


def _refused(server: PageServer) -> list[dict[str, Any]]:
    return [line for line in server.log if line["message"].startswith("not loaded")]


def _read(stderr: Any, log: list[dict[str, Any]]) -> None:
    for line in stderr:
        try:
            log.append(json.loads(line))
        except ValueError:
            log.append({"message": line.rstrip(), "level": "not JSON"})


def _wait(what: Any, server: PageServer) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert server.process.poll() is None, f"the server ended: {server.log}"
        assert time.monotonic() < deadline, f"waited in vain: {server.log}"
        time.sleep(0.02)
    return found
