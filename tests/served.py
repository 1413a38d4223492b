"""The server that tests start: `polarprune serve` in a process of its own, stopped in the end."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from benchmarks.serving.server_process import HOST, SERVER, ServerProcess

HURT_SERVER = Path(__file__).with_name("hurt_server.py")


class Served(ServerProcess):
    """A server of bundles' ONNX files, one thread to an operator, gRPC only where it is asked for.

    Its log lies hidden beside what it serves. At the end of the context it is told to stop, if it
    still runs, and must do so with 0.
    """

    def __init__(self, source: Path, *options: str, hurt: str | None = None) -> None:
        """Start it.

        Args:
            source: a bundle or a folder of bundles.
            options: of the command line.
            hurt: of `hurt_server`; None for a server as it is.
        """
        handle, log = tempfile.mkstemp(".log", f".{source.name}-", source.parent)
        os.close(handle)
        ports = () if "--grpc-port" in options else ("--grpc-port", "-1")
        words = ("--backend", "onnxruntime", "--threads", "1", *ports, *options)
        program = SERVER if hurt is None else (str(HURT_SERVER), hurt)
        super().__init__(source, Path(log), *words, program=program)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            if kind is None and self.process.poll() is None:
                code = self.stop()
                assert code == 0, (code, self.events()[-20:])
        finally:
            super().__exit__(kind, error, trace)

    def address(self, port: str = "http") -> str:
        """HOST:PORT of one of its ports."""
        return f"{HOST}:{self.ports[port]}"

    def failures(self) -> list[str]:
        """What its log holds of its own failures."""
        bad = ("error", "critical")
        return [entry["message"] for entry in self.events() if entry.get("level") in bad]

    def resident_bytes(self, line: str = "VmRSS") -> int:
        """The memory of its process now; with VmHWM, at its peak."""
        status = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (found,) = (each.split()[1] for each in status if each.startswith(line))
        return int(found) << 10

    @contextmanager
    def growth_below(self, nbytes: int) -> Iterator[None]:
        """Its memory must not grow by more meanwhile, not even for a moment."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak is counted from now on
        before = self.resident_bytes()
        yield
        grown = self.resident_bytes("VmHWM") - before
        assert grown < nbytes, f"{grown >> 20} MiB more"
