"""The real server in a process of its own, asked over plain HTTP."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
SECONDS = 60


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Server:
    """A running `polarprune serve`; its lines on stderr are read all the time.

    Args:
        source: what is served.
        hurt: of `hurt_server`; None for a server as it is.
    """

    def __init__(self, source: Path, *options: str, hurt: str | None = None) -> None:
        program = (
            ["-m", "polarprune"] if hurt is None else [str(ROOT / "tests/hurt_server.py"), hurt]
        )
        ports = ["--http-port", "0", "--grpc-port", "-1", "--metrics-port", "0"]
        given = {option for option in options if option.startswith("--")}
        for name, value in zip(ports[::2], ports[1::2], strict=True):
            options = options if name in given else (*options, name, value)
        paths = [str(ROOT / part) for part in ("", "export", "deploy")]
        self.process = subprocess.Popen(
            [sys.executable, *program, "serve", str(source), "--backend", "onnxruntime",
             "--threads", "1", *options],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.decode())
                self._news.notify_all()
        with self._news:
            self.lines.append("")
            self._news.notify_all()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines that are JSON."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def wait_for(self, message: str, times: int = 1, **about: str) -> dict[str, Any]:
        """The event of this kind, once there are so many."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [
                event
                for event in self.events
                if event["message"] == message and about.items() <= event.items()
            ]
            return len(found) >= times or self.lines[-1:] == [""]

        with self._news:
            assert self._news.wait_for(there, SECONDS), self.lines
        assert len(found) >= times, self.lines
        return found[times - 1]

    def ask(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None,
        port: str = "http",
    ) -> Answer:  # fmt: skip
        """One request on a connection of its own; POST where there is a body."""
        number = self.wait_for("listening")[port]
        connection = http.client.HTTPConnection("127.0.0.1", number, timeout=SECONDS)
        try:
            connection.request("GET" if body is None else "POST", path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers.items()), response.read())
        finally:
            connection.close()

    def infer(
        self, model: str, images: "np.ndarray[Any, Any]", headers: dict[str, str] | None = None
    ) -> Answer:
        return self.ask(f"/v2/models/{model}/infer", infer_body(images), headers)

    def end(self, *signals: signal.Signals) -> int:
        """The exit status after these, one soon after the other."""
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.02)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code


def infer_body(images: "np.ndarray[Any, Any]") -> bytes:
    """A request in JSON."""
    tensor = {"name": "input", "datatype": "FP32", "shape": list(images.shape)}
    return json.dumps({"inputs": [{**tensor, "data": images.ravel().tolist()}]}).encode()


def outputs_of(answer: Answer) -> "np.ndarray[Any, Any]":
    (output,) = answer.document["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])
