"""The options of `bench`."""

from pathlib import Path
from typing import Annotated

import typer

BenchSource = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN|BUNDLE|MODEL]",
        help="The pruned side; a folder of save_network is a MODEL too. None with --server.",
        show_default=False,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(help="What to compare with.", show_default="the base network of a RUN"),
]
Batches = Annotated[
    str | None,
    typer.Option(
        help="Batch sizes, images, with commas.", show_default="1,8,64, or what a bundle allows"
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="onnxruntime (auto), torch, tensorrt or tensorrt_rtx; torch takes no BUNDLE."
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Threads inside one operator.", show_default="all CPUs")
]
Mode = Annotated[
    str,
    typer.Option(
        help="eager, graph (a CUDA graph: torch, TensorRT), compile or compile-graph (torch)."
    ),
]
TorchPrecision = Annotated[
    str | None,
    typer.Option(help="Of torch: fp32, fp16 or bf16.", show_default="fp32, or as exported"),
]
Scenario = Annotated[
    str | None,
    typer.Option(
        help="offline, or single_stream: single images, percentiles, in the style of MLPerf; of a "
        "--server: closed or poisson.",
        show_default="offline; closed, or poisson with --rate",
    ),
]
Cache = Annotated[
    str, typer.Option(help="What a run finds in the caches: warm or cold (emptied before each).")
]
Builds = Annotated[
    int, typer.Option(help="Load, compile or build everything so many times; all must agree.")
]
AcrossPrecisions = Annotated[
    bool, typer.Option("--across-precisions", help="The sides may differ in precision.")
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Then say where the time goes, layer by layer: onnxruntime on a CPU, torch eager.",
    ),
]
Rounds = Annotated[int, typer.Option(help="Paired samples of a row, at least 40.")]
BenchSeed = Annotated[int, typer.Option(help="Seed of inputs and order.")]
Record = Annotated[
    Path | None,
    typer.Option(help="Write all raw samples here, JSON lines.", show_default="nowhere"),
]

# Those of `bench --server`.
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Load this server of the Open Inference Protocol, http(s)://host:port.",
        show_default="none",
    ),
]
AgainstServer = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Compare with this server, in turn.", show_default="no comparison"
    ),
]
ServedModel = Annotated[
    str | None, typer.Option("--model", help="Of the server.", show_default="the only one")
]
Clients = Annotated[
    str | None,
    typer.Option(
        help="Of a closed loop, with commas; of Poisson the most connections.",
        show_default="8; 256",
    ),
]
Rate = Annotated[
    str | None,
    typer.Option(help="Of Poisson, requests a second, with commas.", show_default="none"),
]
Seconds = Annotated[
    float | None, typer.Option(help="Of each load, after a warm-up.", show_default="10")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Holds the bearer token of the server.", show_default="no token"
    ),
]
