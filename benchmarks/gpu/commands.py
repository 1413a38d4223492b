"""The parts as commands: options, record, table."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.gpu.deadline import Deadline, TimeIsUp
from benchmarks.gpu.record_file import RecordFile, describe_call, device_of, record_path
from polarprune.errors import ConfigError

Seconds = Annotated[float, typer.Option(help="It stops by itself before these are used up.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="On the CPU, with tiny images.")]
Record = Annotated[Path | None, typer.Option(help="Where the record is written.")]
Continue = Annotated[
    Path | None, typer.Option("--continue", help="A record; what is in it is not done again.")
]
Seed = Annotated[int, typer.Option(help="Of weights, inputs and orders.")]
Batches = Annotated[str, typer.Option(help="Batch sizes, with commas.")]
Precision = Annotated[str, typer.Option(help="fp32, fp16 or bf16; fp32 in a rehearsal.")]

_SECONDS = 500.0
_REHEARSED_SIZE = 32
_NETWORK, _REHEARSED = "torchvision:resnet50", "resnet20"


@contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except TimeIsUp as stop:
        print(f"{stop}; go on with --continue")


def _show(table: Any) -> None:
    Console(width=230).print(table)


def _opened(
    name: str, what: str, dry_run: bool, record: Path | None, continued: Path | None,
    fixed: dict[str, Any], options: dict[str, Any],
) -> RecordFile:  # fmt: skip
    """A part's record, with a line on this call."""
    _, gpu = device_of(dry_run)
    place = "CPU REHEARSAL, not a GPU claim" if dry_run else gpu
    head = {"part": name, "what": f"{what}; {place}", "device": gpu, "dry_run": dry_run, **fixed}
    found = RecordFile(record_path(name, record, dry_run), head, continued)
    found.add("call", **describe_call(options))
    return found


def latency(
    networks: Annotated[str, typer.Option(help="Of torchvision, with commas.")] = "",
    kept: Annotated[str, typer.Option(help="Bounds on the share of MACs.")] = "0.5,0.25,0.75",
    batches: Batches = "1,64,8,256",
    precisions: Annotated[str, typer.Option(help="fp16, bf16, fp32.")] = "fp16,bf16",
    modes: Annotated[
        str, typer.Option(help="graph, eager, onnxruntime, compile, compile-graph.")
    ] = "graph,eager,onnxruntime,compile",
    image_size: Annotated[int, typer.Option(help="Pixels a side.")] = 224,
    rounds: Annotated[int, typer.Option(help="Paired rounds, at least 40.")] = 40,
    seed: Seed = 0,
    seconds: Seconds = _SECONDS,
    record: Record = None,
    continue_from: Continue = None,
    dry_run: DryRun = False,
) -> None:
    """Dense against cut networks, uniform in channels or whole blocks."""
    deadline = Deadline(seconds)
    from benchmarks.gpu import latency_cells as cells
    from benchmarks.gpu.latency import LatencyPart
    from benchmarks.gpu.latency_report import latency_table
    from benchmarks.gpu.uniform_networks import CUTS

    if dry_run:
        image_size, precisions = min(image_size, 2 * _REHEARSED_SIZE), "fp32"
        batches = "1,2" if batches == "1,64,8,256" else batches
        modes = "eager" if modes == "graph,eager,onnxruntime,compile" else modes
    wanted = cells.ordered_cells(
        networks.split(",") if networks else cells.NETWORKS,
        [float(each) for each in kept.split(",")],
        _among("--precisions", precisions, cells.PRECISIONS),
        _among("--modes", modes, cells.MODES),
        [int(each) for each in batches.split(",")],
    )
    device, gpu = device_of(dry_run)
    fixed = {"image_size": image_size, "rounds": rounds, "seed": seed}
    what = f"dense against cut, {image_size}x{image_size}, random weights: latency only"
    options = {"networks": networks, "kept": kept, "batches": batches, "precisions": precisions,
               "modes": modes, "family": len(wanted) * len(CUTS)}  # fmt: skip
    found = _opened("uniform_cuts", what, dry_run, record, continue_from, fixed, options)
    # Each side gets its best kernels; only deterministic ones, so that a control is bit-equal.
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = True
    part = LatencyPart(
        found, deadline, device, gpu, image_size, rounds, seed, len(wanted) * len(CUTS)
    )
    left = part.run(wanted)
    _show(latency_table(found))
    if left:
        print(f"no time for {len(left)} of {len(wanted)}; the first is {left[0]}: --continue")


def staircase(
    network: Annotated[str, typer.Option(help="As --model.")] = _NETWORK,
    batches: Batches = "1,64",
    precision: Precision = "fp16",
    image_size: Annotated[int, typer.Option(help="Pixels a side.")] = 224,
    seed: Seed = 0,
    seconds: Seconds = _SECONDS,
    record: Record = None,
    continue_from: Continue = None,
    dry_run: DryRun = False,
) -> None:
    """Time of convolutions over their channel counts."""
    deadline = Deadline(seconds)
    from benchmarks.gpu.staircase import staircase_table, time_convolutions
    from polarprune_deploy.layers.layer_timers import choose_timer

    if dry_run:
        image_size, precision = min(image_size, _REHEARSED_SIZE), "fp32"
        network = _REHEARSED if network == _NETWORK else network
    device, gpu = device_of(dry_run)
    fixed = {"network": network, "image_size": image_size, "precision": precision, "seed": seed}
    what = f"convolutions of {network} at {image_size}x{image_size} in {precision}, by channels"
    found = _opened("staircases", what, dry_run, record, continue_from, fixed, {"batches": batches})
    gated = _gated(network, image_size, seed)
    timer = choose_timer("torch", device, precision)
    sizes = [int(each) for each in batches.split(",")]
    with _stopping():
        time_convolutions(gated, timer, found, deadline, sizes, seed, gpu)
    _show(staircase_table(found))


def predicted(
    network: Annotated[str, typer.Option(help="As --model.")] = _NETWORK,
    n: Annotated[int, typer.Option(help="Random networks of each alignment.")] = 20,
    batch: Annotated[int, typer.Option(help="Images in one call.")] = 1,
    precision: Precision = "fp16",
    image_size: Annotated[int, typer.Option(help="Pixels a side.")] = 224,
    table: Annotated[Path | None, typer.Option(help="Made before, on this device.")] = None,
    seed: Seed = 0,
    seconds: Seconds = _SECONDS,
    record: Record = None,
    continue_from: Continue = None,
    dry_run: DryRun = False,
) -> None:
    """Predicted against measured latency of random cuts."""
    deadline = Deadline(seconds)
    from benchmarks.gpu.predicted import predict, prediction_table
    from polarprune_deploy.layers.profiling import ProfileRequest

    if dry_run:
        image_size, precision = min(image_size, _REHEARSED_SIZE), "fp32"
        network = _REHEARSED if network == _NETWORK else network
    device, _ = device_of(dry_run)
    fixed = {"network": network, "image_size": image_size, "precision": precision, "seed": seed,
             "batch": batch}  # fmt: skip
    what = (
        f"predicted against measured latency of random cuts of {network}, batch {batch}, "
        f"{precision}, random weights: latency only"
    )
    found = _opened("predicted", what, dry_run, record, continue_from, fixed, {"n": n})
    request = ProfileRequest(batch, None, seed, "torch", device, precision)
    head = {"model": network, "input_shape": [3, image_size, image_size]}
    with _stopping():
        predict(
            _gated(network, image_size, seed), head, request, request.timer(), found, deadline, n,
            table,
        )  # fmt: skip
    _show(prediction_table(found))


def cifar(
    data: Annotated[str, typer.Option(help="A class-folder tree, mosaics, or digits.")],
    work: Annotated[
        Path | None, typer.Option(help="Run folders, or tars of them; none: begin anew.")
    ] = None,
    only: Annotated[str, typer.Option(help="Rows: dense, macs-0.5, latency-0.5.")] = "",
    seeds: Annotated[int, typer.Option(help="Runs a row.")] = 3,
    first_seed: Annotated[int, typer.Option(help="Others are another call's.")] = 0,
    epochs: Annotated[int, typer.Option(help="Of each run.")] = 12,
    at_once: Annotated[int, typer.Option(help="Processes side by side.")] = 8,
    model: Annotated[str, typer.Option(help="Another one is a rehearsal.")] = "resnet56",
    latency_table: Annotated[Path | None, typer.Option(help="Of this model; adds a row.")] = None,
    seconds: Seconds = _SECONDS,
    record: Record = None,
    continue_from: Continue = None,
    dry_run: DryRun = False,
) -> None:
    """ResNet-56 on CIFAR-10, dense and pruned."""
    deadline = Deadline(seconds)
    from benchmarks.gpu import cifar as study
    from benchmarks.gpu.image_shards import is_shards, tree_of

    rows = [row for row in study.ROWS if latency_table or row != "latency-0.5"]
    if only:
        rows = _among("--only", only, tuple(rows))
    if dry_run:
        model, at_once = ("resnet20" if model == "resnet56" else model), min(at_once, 2)
    device, _ = device_of(dry_run)
    fixed = {"model": model, "epochs": epochs, "data": Path(data).name}
    what = f"{model} on {Path(data).name}, {epochs} epochs"
    options = {"rows": rows, "seeds": seeds, "first_seed": first_seed, "at_once": at_once}
    found = _opened("cifar", what, dry_run, record, continue_from, fixed, options)
    with TemporaryDirectory(prefix="polarprune-cifar-") as folder:
        tree, images = data, dict[str, int]()
        if is_shards(Path(data)):
            unpacked, images = tree_of(Path(data))
            tree = str(unpacked)
        asked = {"model": model, "data": tree, "epochs": epochs, "device": device}
        if dry_run and data == "digits":
            asked["image_size"] = 16
        jobs = study.jobs_left(
            rows, range(first_seed, seeds), found, work or Path(folder) / "runs",
            study.cifar_ends(deadline), asked, latency_table,
        )  # fmt: skip
        left = study.train_all(jobs, found, at_once, images)
    _show(study.cifar_table(found))
    for each in left:
        print(f"not finished: {each}; go on with --continue and --work")


def _gated(network: str, image_size: int, seed: int) -> Any:
    from polarprune import attach_gates
    from polarprune.networks import build_network

    torch.manual_seed(seed)
    net = build_network(network, num_classes=1000).eval()
    return attach_gates(net, torch.zeros(1, 3, image_size, image_size))


def _among(option: str, words: str, allowed: tuple[str, ...]) -> list[str]:
    found = words.split(",")
    for word in found:
        if word not in allowed:
            raise ConfigError(f"{option} takes {', '.join(allowed)}, got {word!r}")
    return found
