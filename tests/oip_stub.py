"""A small server of the Open Inference Protocol that misbehaves as it is told.

Written on the standard library's HTTP server, a thread a connection, and shares no code with ours.
"""

import json
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

FIRST_LOOK = 16
"""Requests that are answered as they should be, before anything goes wrong."""
METADATA = {
    "name": "small",
    "versions": ["1"],
    "platform": "stub",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 4, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 5]}],
}


@dataclass
class Behaviour:
    """What is wrong with the server; `*_every` counts inference requests behind the first look."""

    delay_s: float = 0.0
    noise: float = 0.0
    reject_every: int = 0
    fail_every: int = 0
    wrong_every: int = 0
    cut_every: int = 0
    hang_every: int = 0
    die_at: int = 0
    stall_at: int = 0
    stall_s: float = 0.0
    binary: bool = True
    coding: str = "length"
    token: str | None = None
    metadata: Any = field(default_factory=lambda: METADATA)
    index: Any = field(default_factory=lambda: [{"name": "small", "state": "READY"}])
    raw: dict[str, bytes] = field(default_factory=dict)
    """Bytes in place of the answer to a path."""


def network(x: np.ndarray) -> np.ndarray:
    """What the stub computes: five numbers of each image."""
    return x.reshape(len(x), -1)[:, :5] + x.mean(axis=(1, 2, 3))[:, None]


class Stub(ThreadingHTTPServer):
    """Listens on a free port; `counts` says what it did, `stalls` when it stood still."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, behaviour: Behaviour, certificate: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = behaviour
        self.counts = dict.fromkeys(("infer", "rejected", "failed", "wrong", "cut", "hung"), 0)
        self.stalls: list[tuple[float, float]] = []
        self.lock, self.standing_still, self.over = (
            threading.Lock(), threading.Lock(), threading.Event(),
        )  # fmt: skip
        self.open: set[Any] = set()
        self.dead = False
        self.scheme = "http" if certificate is None else "https"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up whenever they like."""

    def die(self) -> None:
        """As a killed process: the port is closed, and so is every connection."""
        self.dead = True  # a connection that was just made is not among those that are open
        self.socket.close()
        for connection in list(self.open):
            connection.close_abruptly()

    def stop(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Stub

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self)

    def finish(self) -> None:
        self.server.open.discard(self)
        super().finish()

    def close_abruptly(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._document()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/infer") and self.path not in self.server.behaviour.raw:
            self._infer(body)
        else:
            self._document()

    def _document(self) -> None:
        behaviour = self.server.behaviour
        if self.path in behaviour.raw:
            self.wfile.write(behaviour.raw[self.path])
            self.close_connection = True
        elif not self._known():
            self._answer(401, b'{"error": "who are you?"}')
        elif self.path == "/v2/models/small":
            self._answer(200, json.dumps(behaviour.metadata).encode())
        elif self.path == "/v2/repository/index" and behaviour.index is not None:
            self._answer(200, json.dumps(behaviour.index).encode())
        else:
            self._answer(404, b'{"error": "no such thing"}')

    def _known(self) -> bool:
        token = self.server.behaviour.token
        return token is None or self.headers.get("Authorization") == f"Bearer {token}"

    def _infer(self, body: bytes) -> None:
        behaviour, counts = self.server.behaviour, self.server.counts
        with self.server.lock:
            counts["infer"] += 1
            number = counts["infer"] - FIRST_LOOK

        def is_turn(every: int) -> bool:
            return every > 0 and number > 0 and number % every == 0

        def count(what: str) -> None:
            with self.server.lock:
                counts[what] += 1

        self._wait(number)
        if self.server.dead:
            self.close_connection = True
        elif is_turn(behaviour.cut_every):
            count("cut")
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            self.close_connection = True
        elif is_turn(behaviour.hang_every):
            count("hung")
            self.server.over.wait(20)
        elif is_turn(behaviour.reject_every):
            count("rejected")
            self._answer(503, b'{"error": "full"}', "Retry-After: 1")
        elif is_turn(behaviour.fail_every):
            count("failed")
            self._answer(500, f'{{"error": "out of luck in run {number}"}}'.encode())
        elif not behaviour.binary and "Inference-Header-Content-Length" in self.headers:
            self._answer(400, b'{"error": "no binary tensors here"}')
        else:
            wrong = is_turn(behaviour.wrong_every)
            if wrong:
                count("wrong")
            self._compute(body, wrong)

    def _wait(self, number: int) -> None:
        behaviour = self.server.behaviour
        if behaviour.die_at and number == behaviour.die_at:
            self.server.die()
        if behaviour.stall_at and number == behaviour.stall_at:
            with self.server.standing_still:
                start = time.monotonic()
                time.sleep(behaviour.stall_s)
                self.server.stalls.append((start, time.monotonic()))
        with self.server.standing_still:
            pass
        if behaviour.delay_s:
            time.sleep(behaviour.delay_s)

    def _compute(self, body: bytes, wrong: bool) -> None:
        length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
        request = json.loads(body[:length])
        (tensor,) = request["inputs"]
        if "data" in tensor:
            x = np.array(tensor["data"], np.float32)
        else:
            x = np.frombuffer(body[length:], "<f4")
            assert tensor["parameters"]["binary_data_size"] == x.nbytes
        noise = self.server.behaviour.noise * np.random.default_rng().standard_normal()
        y = network(x.reshape(tensor["shape"])) * (1 + noise)
        y = (y[::-1] + 1 if wrong else y).astype("<f4")
        described: dict[str, Any] = {"name": "y", "datatype": "FP32", "shape": list(y.shape)}
        if "data" in tensor:
            self._answer(200, json.dumps({"outputs": [{**described, "data": y.ravel().tolist()}]}))
            return
        described["parameters"] = {"binary_data_size": y.nbytes}
        text = json.dumps({"model_name": "small", "outputs": [described]}).encode()
        extra = f"inference-header-content-length: {len(text)}"
        self._answer(200, text + y.tobytes(), extra)

    def _answer(self, status: int, body: bytes | str, *fields: str) -> None:
        body = body.encode() if isinstance(body, str) else body
        coding = self.server.behaviour.coding
        lines = [f"HTTP/1.1 {status} So", "Date: today", *fields]
        if coding == "chunked":
            lines.append("Transfer-Encoding: chunked")
            parts = [body[i : i + 7] for i in range(0, len(body), 7)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
        elif coding == "close":
            lines.append("Connection: close")
            self.close_connection = True
        else:
            lines.append(f"content-length: {len(body)}")
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)
