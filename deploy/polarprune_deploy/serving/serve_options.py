"""Everything that `polarprune serve` is told, and its bounds."""

from dataclasses import dataclass
from pathlib import Path

from polarprune.errors import ConfigError
from polarprune.option_values import check_choice, check_range
from polarprune_deploy.backends.loading import DEVICES

LARGEST_PORT = 65_535
OPTIONAL_PORTS = ("grpc_port", "metrics_port")
LONGEST = 1_000_000
"""Seconds, or milliseconds."""
OF_BOUNDS = {"body_bytes": ("--max-body-mb", 1 << 20), "queue_requests": ("--queue", 1)}
"""The bounds that are options of the command, and what these count in."""
BACKENDS = ("auto", "onnxruntime", "tensorrt", "tensorrt_rtx")
MODES = ("eager", "graph")
FLUSH_SECONDS = 5
"""For the last answers to leave, once all are computed."""


@dataclass(frozen=True)
class Bounds:
    """What a stranger may make the server hold.

    Attributes:
        body_bytes: of one request's body, after decompression too.
        json_bytes: of the JSON part of a request; over gRPC, of all but its raw tensors.
        total_bytes: of all bodies that are being received or wait.
        header_bytes: of a request's line and headers.
        header_seconds, body_seconds: until headers, and a body, have come.
        pixels: of one image that is to be decoded.
        connections: open at a time; over gRPC, calls too.
        queue_requests, queue_bytes: of one model; None for requests: as many as are computed in
            about a second.
    """

    body_bytes: int = 64 << 20
    json_bytes: int = 8 << 20
    total_bytes: int = 512 << 20
    header_bytes: int = 32 << 10
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    pixels: int = 50_000_000
    connections: int = 1024
    queue_requests: int | None = None
    queue_bytes: int = 256 << 20


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        source: a bundle, or a folder of bundles.
        host: what to listen on.
        http_port, grpc_port, metrics_port: 0 takes any free one; None: not at all.
        backend: "auto": the bundle's engine where it has one, else onnxruntime.
        device, threads, mode: as for `loading.load_runner`.
        fallback: serve a bundle's ONNX file where its engine cannot run.
        public_key: bundles must be signed by it.
        batch_size, window_ms: of the batcher; None: from the measured curve.
        timeout_ms: of requests that bring none; None: none.
        poll_seconds: how often the folder is looked at again; 0: only on SIGHUP.
        lame_duck_seconds: between "not ready" and the first refusal, on SIGTERM.
        drain_seconds: until everything must have been answered after that.
        token_file: holds the bearer token that requests must bring.
        access_log: a line for each request, not only for those that failed.
    """

    source: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = 8001
    metrics_port: int | None = 8002
    backend: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    mode: str = "eager"
    fallback: bool = False
    public_key: Path | None = None
    batch_size: int | None = None
    window_ms: float | None = None
    timeout_ms: int | None = None
    poll_seconds: float = 2.0
    lame_duck_seconds: float = 0.0
    drain_seconds: float = 30.0
    token_file: Path | None = None
    access_log: bool = False
    bounds: Bounds = Bounds()

    def __post_init__(self) -> None:
        for name in ("http_port", "grpc_port", "metrics_port"):
            port = getattr(self, name)
            off = ", or -1 for none" if name in OPTIONAL_PORTS else ""
            check_range(f"--{name.replace('_', '-')}", port, 0, LARGEST_PORT, off)
        taken = [p for p in (self.http_port, self.grpc_port, self.metrics_port) if p]
        if len(set(taken)) != len(taken):
            raise ConfigError(
                "--http-port, --grpc-port and --metrics-port must differ, got "
                f"{', '.join(map(str, taken))}"
            )
        for name in ("poll_seconds", "lame_duck_seconds", "drain_seconds", "window_ms"):
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), 0, LONGEST)
        for name in ("threads", "batch_size", "timeout_ms"):
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        check_choice("--backend", self.backend, BACKENDS)
        check_choice("--device", self.device, DEVICES)
        check_choice("--mode", self.mode, MODES)
        for name, value in vars(self.bounds).items():
            if value is not None and value <= 0:
                option, unit = OF_BOUNDS.get(name, (f"the bound {name}", 1))
                raise ConfigError(f"{option} must be above 0, got {value // unit}")
