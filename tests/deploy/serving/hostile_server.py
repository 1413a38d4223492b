"""A real server in a process of its own, whose every answer is held to what was promised."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polarprune_export.onnx_session import open_session, run_session
from tests.deploy.serving.raw_http import PATIENCE, Answer, RawConnection, request
from tests.small_bundles import CLASSES, SIDE, write_small_bundle

Images = NDArray[np.float32]

MODEL = "small"
INFER = f"/v2/models/{MODEL}/infer"
MOST = 8
"""Images in one request, as the bundle says."""
LENGTH = "Inference-Header-Content-Length"
INTERNALS = ("Traceback", 'File "', "site-packages", "polarprune_deploy", "0x7f", "object at")
REFUSALS = frozenset(range(400, 500)) | {503}
SERVE_WITH_BOUNDS = "tests.deploy.serving.serve_with_bounds"
START_SECONDS = 60
TOKEN = "correct-horse-battery-staple"
SHORT_BOUNDS: dict[str, Any] = {
    "header_seconds": 1.0,
    "body_seconds": 1.5,
    "body_bytes": 1 << 20,
    "total_bytes": 3 << 20,
    "connections": 24,
}


class HostileServer:
    """`polarprune serve` over the small bundle, and the same network without it."""

    def __init__(
        self, folder: Path, *options: str, bounds: dict[str, Any] | None = None,
        token_file: Path | None = None,
    ) -> None:  # fmt: skip
        """Start it, and wait until it is ready.

        Args:
            folder: for the bundle.
            options: of the command line.
            bounds: serves with these instead of by the command line.
        """
        bundle = write_small_bundle(folder / MODEL)
        self.session = open_session((bundle / "model.onnx").read_bytes(), threads=1)
        self.token = None if token_file is None else token_file.read_text().strip()
        if bounds is None:
            ports = ("--http-port", "0", "--grpc-port", "-1", "--metrics-port", "0")
            verb = ("-m", "polarprune", "serve", str(folder), "--backend", "onnxruntime")
            words: Sequence[str] = (*verb, *ports, *options)
        else:
            words = (
                "-m",
                SERVE_WITH_BOUNDS,
                str(folder),
                json.dumps(bounds),
                str(token_file or ""),
            )
        self.process = subprocess.Popen(
            [sys.executable, *words], stderr=subprocess.PIPE, text=True, env=os.environ | FAST
        )
        self.log: deque[dict[str, Any]] = deque(maxlen=1000)
        self._serving = threading.Event()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        if not self._serving.wait(START_SECONDS) or self.process.poll() is not None:
            self.stop()
            raise AssertionError(f"the server did not start: {list(self.log)}")

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            entry = json.loads(line)
            if entry["message"] == "listening":
                self.port, self.metrics_port = entry["http"], entry["metrics"]
            self.log.append(entry)
            if entry["message"] == "serving":
                self._serving.set()
        self._serving.set()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self._reader.join(PATIENCE)
            if self.process.stderr is not None:
                self.process.stderr.close()

    def failures(self) -> list[dict[str, Any]]:
        """What the log holds of the server's own failures."""
        return [entry for entry in self.log if entry["level"] in ("error", "critical")]

    def connect(self, **more: Any) -> RawConnection:
        """A connection to it."""
        return RawConnection(self.port, **more)

    def ask(self, raw: bytes, method: str = "POST") -> Answer | None:
        """The first answer to some bytes on a connection of their own, checked; None for none."""
        with self.connect() as connection:
            connection.send(raw)
            answer = connection.answer(method)
        if answer is not None:
            check_kind(answer, method)
        return answer

    def refuse(self, body: bytes, headers: dict[str, str] | None = None, path: str = INFER) -> str:
        """The words with which an inference is refused.

        Raises:
            AssertionError: it is not.
        """
        answer = self.ask(request(path, body, headers=(headers or {}) | self.authorization))
        assert answer is not None, "no answer"
        assert answer.status in REFUSALS, answer
        words: str = json.loads(answer.body)["error"]
        return f"{answer.status} {words}"

    @property
    def authorization(self) -> dict[str, str]:
        """The header that is asked for, if one is."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def good_request(self, images: Images, more: dict[str, str] | None = None) -> bytes:
        """The bytes of a request in order."""
        body, length = binary_body(images)
        headers = {LENGTH: str(length), **self.authorization, **(more or {})}
        return request(INFER, body, headers=headers)

    def check_logits(self, images: Images, answer: Answer | None) -> None:
        """Hold an answer to `good_request` to the network itself."""
        assert answer is not None, "no answer to a good request"
        assert answer.status == 200, answer
        found = read_logits(answer)
        assert found.shape == (len(images), CLASSES)
        (wanted,) = run_session(self.session, images, chunk=MOST)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    def check_well(self, seed: int = 0) -> None:
        """It runs, has not failed, and answers a good request with the right numbers."""
        assert self.process.poll() is None, f"the server ended: {list(self.log)[-5:]}"
        assert not self.failures(), self.failures()
        images = some_images(1 + seed % MOST, seed)
        self.check_logits(images, self.ask(self.good_request(images)))

    def resident_bytes(self) -> int:
        """Of the server's process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


FAST = {"OMP_NUM_THREADS": "1"}


def some_images(count: int, seed: int = 0) -> Images:
    """Noise."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)


def binary_body(images: Images, **more: Any) -> tuple[bytes, int]:
    """Body and length of its JSON; `more` replaces what the JSON says of the input."""
    tensor = {
        "name": "input", "datatype": "FP32", "shape": list(images.shape),
        "parameters": {"binary_data_size": images.nbytes}, **more,
    }  # fmt: skip
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(document).encode()
    return head + images.tobytes(), len(head)


def json_body(images: Images, **more: Any) -> bytes:
    """The body of a request that is JSON alone; `more` replaces what it says of the input."""
    tensor = {"name": "input", "datatype": "FP32", "shape": list(images.shape),
              "data": images.reshape(-1).tolist(), **more}  # fmt: skip
    return json.dumps({"inputs": [tensor]}).encode()


def read_logits(answer: Answer) -> Images:
    """The one output of an answer, binary or not."""
    length = answer.headers.get(LENGTH.lower())
    document = json.loads(answer.body[: None if length is None else int(length)])
    (output,) = document["outputs"]
    assert (output["name"], output["datatype"]) == ("logits", "FP32")
    if length is None:
        return np.array(output["data"], np.float32).reshape(output["shape"])
    blob = answer.body[int(length) :]
    assert output["parameters"]["binary_data_size"] == len(blob)
    return np.frombuffer(blob, "<f4").reshape(output["shape"])


def check_kind(answer: Answer, method: str = "POST") -> None:
    """2xx, 4xx or 503; errors in one line of JSON, without what is nobody's business."""
    assert 200 <= answer.status < 300 or answer.status in REFUSALS, answer
    if answer.status < 300 or method == "HEAD":
        return
    assert answer.headers["content-type"] == "application/json", answer
    document = json.loads(answer.body)
    assert list(document) in (["error"], ["live"], ["ready"], ["name", "ready"]), answer
    words = document.get("error", "-")
    assert words, answer
    assert words.isprintable(), answer
    assert len(words) < 1000, answer
    assert not [word for word in INTERNALS if word in words], answer


def wait_until(condition: Any, seconds: float = PATIENCE) -> None:
    """Until it holds.

    Raises:
        AssertionError: it never does.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
