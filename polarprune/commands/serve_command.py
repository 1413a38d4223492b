"""The verb `serve` of the command line."""

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[Path, typer.Argument(metavar="FOLDER_OF_BUNDLES|BUNDLE", help="What to serve.")]
Token = Annotated[
    Path | None,
    typer.Option(
        help="File with a bearer token that requests must bring.", show_default="none needed"
    ),
]
PublicKey = Annotated[
    Path | None,
    typer.Option(help="Bundles must be signed by this ed25519 key.", show_default="unchecked"),
]


def serve(
    source: Source,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC; 0 takes a free one, -1 none.")] = 8001,
    metrics_port: Annotated[
        int, typer.Option(help="Prometheus; 0 takes a free one, -1 none.")
    ] = 8002,
    backend: Annotated[
        str,
        typer.Option(
            help="auto (a bundle's engine, else ONNX Runtime), onnxruntime, tensorrt, tensorrt_rtx."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="Of ONNX Runtime: cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(help="Threads inside one operator.", show_default="all CPUs")
    ] = None,
    mode: Annotated[str, typer.Option(help="Of engines: eager or graph.")] = "eager",
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Serve the ONNX file where the engine cannot run.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images to a batch.", show_default="from the measured curve"),
    ] = None,
    window_ms: Annotated[
        float | None,
        typer.Option(
            help="Milliseconds to wait for company.", show_default="from the measured curve"
        ),
    ] = None,
    timeout_ms: Annotated[
        int | None,
        typer.Option(help="Deadline of requests that bring none.", show_default="none"),
    ] = None,
    queue: Annotated[
        int | None,
        typer.Option(help="Requests that may wait for a model.", show_default="a second's worth"),
    ] = None,
    max_body_mb: Annotated[int, typer.Option(help="Of one request, MiB.")] = 64,
    poll_seconds: Annotated[
        float, typer.Option(help="How often to look for new versions; 0: on SIGHUP alone.")
    ] = 2.0,
    lame_duck_seconds: Annotated[
        float, typer.Option(help="On SIGTERM: not ready, still answering, for so long.")
    ] = 0.0,
    drain_seconds: Annotated[
        float, typer.Option(help="Then the longest wait for what was taken.")
    ] = 30.0,
    token_file: Token = None,
    public_key: PublicKey = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="A line a request on stderr.")
    ] = False,
) -> None:
    """Serve bundles to Triton's clients, on this machine.

    Open Inference Protocol v2 over HTTP and gRPC. Each bundle is verified, measured and warm before
    it takes traffic; a new version in the folder replaces the old one without a dropped request.
    Images are sent to /v2/models/NAME/classify, or dropped on the page at /. SIGTERM drains and
    exits with 0.
    """
    from polarprune_deploy.serving.serve_options import Bounds, ServeOptions
    from polarprune_deploy.serving.server import serve as serve_bundles

    serve_bundles(
        ServeOptions(
            source=source, host=host, http_port=http_port,
            grpc_port=None if grpc_port == -1 else grpc_port,
            metrics_port=None if metrics_port == -1 else metrics_port,
            backend=backend, device=device, threads=threads, mode=mode, fallback=fallback,
            public_key=public_key, batch_size=batch_size, window_ms=window_ms,
            timeout_ms=timeout_ms, poll_seconds=poll_seconds,
            lame_duck_seconds=lame_duck_seconds, drain_seconds=drain_seconds,
            token_file=token_file, access_log=access_log,
            bounds=Bounds(body_bytes=max_body_mb << 20, queue_requests=queue),
        )
    )  # fmt: skip
