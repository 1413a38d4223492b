"""A real server in a process of its own, on free ports, with the network it serves beside it."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polarprune_export.onnx_session import open_session, run_session
from tests.small_bundles import SIDE, write_small_bundle

Images = NDArray[np.float32]

MODEL = "small"
MOST = 8
"""Images in one request, as the bundle says."""
BODY_MB = 12
"""The bound of one request in the tests' common server, MiB."""
START_SECONDS = 60
STOP_SECONDS = 30


class Served:
    """`polarprune serve` over a folder; leaving the context asks it to stop, which it must do.

    Attributes:
        http, grpc, metrics: the ports; 0 where there is none.
        log: the lines that it has written so far.
    """

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        """Start it.

        Args:
            folder: of bundles.
            options: of the command line, before those of the ports.
        """
        ports = [word for kind in ("http", "grpc", "metrics") for word in (f"--{kind}-port", "0")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "polarprune", "serve", str(folder), "--backend", "onnxruntime",
             *ports, *options],
            stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.log: list[dict[str, Any]] = []
        self.http = self.grpc = self.metrics = 0
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()

    def __enter__(self) -> Self:
        """Itself, once it is ready."""
        end = time.monotonic() + START_SECONDS
        self._listening.wait(START_SECONDS)
        while self.process.poll() is None and time.monotonic() < end:
            if self.ask("/v2/health/ready")[0] == 200:
                return self
            time.sleep(0.01)
        self.process.kill()
        self._end()
        raise AssertionError(f"the server did not start: {self.log}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ask it to stop; it must answer what it has taken and exit with 0."""
        self.stop()

    def stop(self) -> None:
        """SIGTERM, and 0."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        finally:
            self.process.kill()
            self._end()
        assert code == 0, (code, self.log[-20:])

    def ask(self, path: str) -> tuple[int, bytes]:
        """Status and body of one GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    @contextmanager
    def growth_below(self, nbytes: int) -> Iterator[None]:
        """Its memory must not grow by more meanwhile, not even for a moment."""
        folder = Path(f"/proc/{self.process.pid}")
        (folder / "clear_refs").write_text("5")  # the peak is counted from now on
        before = _resident(folder, "VmRSS")
        yield
        grown = _resident(folder, "VmHWM") - before
        assert grown < nbytes, f"{grown >> 20} MiB more"

    def _end(self) -> None:
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            entry = json.loads(line) if line.startswith("{") else {"message": line}
            if entry["message"] == "listening":
                self.http, self.grpc = entry["http"], entry["grpc"]
                self.metrics = entry.get("metrics", 0)
                self._listening.set()
            self.log.append(entry)
        self._listening.set()  # nobody needs to wait for one that has ended


def _resident(folder: Path, line: str) -> int:
    status = (folder / "status").read_text()
    (found,) = (each.split()[1] for each in status.splitlines() if each.startswith(line))
    return int(found) << 10


class Reference:
    """The small network in ONNX Runtime itself."""

    def __init__(self, bundle: Path) -> None:
        """Open the bundle's ONNX file."""
        self._session = open_session((bundle / "model.onnx").read_bytes(), threads=1)

    def __call__(self, images: Images) -> Images:
        """The logits of some images."""
        (logits,) = run_session(self._session, images, chunk=MOST)
        return logits


def make_folder(folder: Path) -> Path:
    """A folder with the small bundle in it."""
    write_small_bundle(folder / MODEL)
    return folder


def some_images(seed: int, rows: int = 1) -> Images:
    """Images that no other seed gives."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((rows, 3, SIDE, SIDE)).astype(np.float32)
