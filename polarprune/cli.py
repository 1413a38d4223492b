r"""The command line: parse, call one library function, print.

    polarprune train --model resnet20 --data digits --image-size 16 --epochs 10 --out run
    polarprune --help

Nothing heavy is imported until a verb needs it, so that help is immediate.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import polarprune
from polarprune import cli_options as options
from polarprune.cli_errors import OneLineErrors, noting_when_stopped
from polarprune.cli_options import AsJson, Classes, Data, ImageSize, Model, Weights
from polarprune.deploy_commands import deploy_app
from polarprune.errors import ConfigError, PolarpruneError
from polarprune.figure_words import cut_figures, sentence, task_figures
from polarprune.serve_command import serve
from polarprune.terminal import Terminal, progress_on

if TYPE_CHECKING:
    from polarprune_deploy.comparisons import Comparison
    from polarprune_deploy.explanation import Explanation
    from polarprune_deploy.load.figures import LoadFigures
    from polarprune_deploy.load.load_plan import LoadPlan
    from polarprune_deploy.load.pairs import ServerPair

app = typer.Typer(
    name="polarprune",
    cls=OneLineErrors,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Train an image network once, cut what it can do without, check it, ship it.",
    epilog="Start with: polarprune demo",
)
app.add_typer(deploy_app)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"polarprune {polarprune.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog="Example: polarprune train --model resnet20 --data cifar10 --out run")
def train(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder to make; absent or empty.")],
    target: Annotated[
        float | None,
        typer.Option(
            help="Kept MACs over dense MACs, a bound, 0..1; 1 trains dense.", show_default="0.5"
        ),
    ] = None,
    target_params: Annotated[
        float | None,
        typer.Option(help="The same of parameters, in place of --target.", show_default="none"),
    ] = None,
    target_latency: Annotated[
        float | None,
        typer.Option(
            help="The same of the latency that --latency-table predicts.", show_default="none"
        ),
    ] = None,
    latency_table: Annotated[
        Path | None,
        typer.Option(help="What `polarprune profile` measured for --model.", show_default="none"),
    ] = None,
    task: Annotated[str, typer.Option(help="classification or segmentation.")] = "classification",
    method: Annotated[
        str,
        typer.Option(
            help="How gates decide: consensus, relaxation, mask-predictor, random or package:Class."
        ),
    ] = "consensus",
    ejector: Annotated[
        str | None,
        typer.Option(help="With relaxation: gaussian or annealed.", show_default="gaussian"),
    ] = None,
    mass: Annotated[
        float | None,
        typer.Option(
            help="With mask-predictor, in place of --target: kept share of each heat map, 0..1.",
            show_default="0.9",
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(help="With mask-predictor: decoupled or joint.", show_default="decoupled"),
    ] = None,
    granularity: Annotated[str, typer.Option(help="What may go: block, channel or both.")] = "both",
    align: Annotated[
        int | None,
        typer.Option(
            help="Round kept channels of a site up to a multiple of this. ONNX Runtime is fast on "
            "a CPU from 4 on, and faster at 16 or 32; a GPU's tensor cores take 8.",
            show_default="1, or what --latency-table favours",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 20,
    weights: Weights = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="A finished run to learn from too.", show_default="none"),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Let torch.compile make the steps faster.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of --out.")
    ] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints inside of an epoch.", show_default="five minutes"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate.", show_default="0.2 x batch size / 128"),
    ] = None,
    schedule: Annotated[str, typer.Option(help="one-cycle or cosine.")] = "one-cycle",
    momentum: Annotated[float, typer.Option(help="Nesterov momentum, 0..1.")] = 0.9,
    weight_decay: Annotated[
        float, typer.Option(help="L2 on weights, not on norms or biases.")
    ] = 5e-4,
    label_smoothing: Annotated[
        float, typer.Option(help="Mass spread over all classes, 0..1.")
    ] = 0.05,
    image_size: ImageSize = None,
    crop_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the squares that segmentation trains on, pixels.",
            show_default="--image-size",
        ),
    ] = None,
    num_classes: Classes = None,
    precision: Annotated[
        str, typer.Option(help="auto, fp32 or bf16 (autocast); auto takes bf16 where it is fast.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[
        int, typer.Option(help="Reading processes, for data that do not fit in memory.")
    ] = 2,
    as_json: AsJson = False,
) -> None:
    """Train in one pass and prune on the way.

    The network is cut down to --target of its MACs or below. Metrics, cuts and checkpoints go to
    the run folder; --target 1 trains dense.
    """
    from polarprune import training
    from polarprune.checkpoints import has_checkpoint
    from polarprune.ranks import rank_of_environment
    from polarprune.run_folder import CHECKPOINT
    from polarprune.train_config import TrainConfig

    config = TrainConfig(
        model=model, data=data, out=out, target=target, target_params=target_params,
        target_latency=target_latency, latency_table=latency_table,
        task=task, method=method, ejector=ejector, mass=mass, heads=heads, granularity=granularity,
        align=align, epochs=epochs, weights=None if weights is None else Path(weights),
        teacher=teacher, compile=compile, seed=seed,
        resume=resume, checkpoint_every=checkpoint_every, batch_size=batch_size, lr=lr,
        schedule=schedule, momentum=momentum, crop_size=crop_size,
        weight_decay=weight_decay, label_smoothing=label_smoothing, image_size=image_size,
        num_classes=num_classes, precision=precision, device=device, workers=workers,
    )  # fmt: skip
    terminal = Terminal(as_json)

    def how_to_go_on() -> str | None:
        words = f"go on from the last checkpoint in {out} with: train --resume"
        return words if has_checkpoint(out / CHECKPOINT) else None

    with noting_when_stopped(how_to_go_on), progress_on(sys.stderr) as progress:
        result = training.train(config, progress)
    if rank_of_environment():
        return  # one voice is enough
    terminal.show(
        f"{sentence(task_figures(result.figures))} on the test split, {result.seconds:.0f} s.",
        f"MACs {result.macs:,} of {result.dense_macs:,} ({100 * result.macs_ratio:.1f} %), "
        f"parameters {result.params:,} of {result.dense_params:,}, "
        f"residual blocks removed: {result.blocks_removed}.",
        f"{sentence(cut_figures(result.figures))}, "
        f"training MACs {100 * result.train_macs_ratio:.1f} % of dense training.",
        *_latency_words(result.latency_ratio, result.align),
        f"Run folder {result.run}; look at it with: polarprune inspect {result.run}",
    )
    terminal.result(result.as_dict())


def _latency_words(ratio: float | None, align: int) -> list[str]:
    if ratio is None:
        return []
    return [
        f"Predicted latency {100 * ratio:.1f} % of the dense network's, channel counts in "
        f"multiples of {align}; measure it with: polarprune bench"
    ]


@app.command(epilog="Example: polarprune inspect torchvision:resnet18 --image-size 224")
def inspect(
    x: Annotated[str, typer.Argument(metavar="MODEL|RUN|BUNDLE", help="What to look at.")],
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html",
            help="Draw the network with its sites on a page here too.",
            show_default="nowhere",
        ),
    ] = None,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    as_json: AsJson = False,
) -> None:
    """Show gate sites and MACs, or a bundle's content.

    Of a model or run: sites, units, what was kept, MACs and refusals. Of a bundle: files, digests,
    certificate, where it runs, preprocessing and classes.
    """
    from polarprune.inspecting import BundleInspection, inspect_source
    from polarprune.inspection_page import check_page_path, write_page
    from polarprune.inspection_tables import bundle_tables, network_tables

    if html is not None:
        check_page_path(html)
    found = inspect_source(x, num_classes, image_size)
    if html is not None:
        write_page(found, html)
    terminal = Terminal(as_json)
    if isinstance(found, BundleInspection):
        terminal.show(*bundle_tables(found))
    else:
        terminal.show(*network_tables(found))
    if html is not None:
        terminal.show(f"Page: {html}")
    terminal.result(found.as_dict())


@app.command(epilog="Example: polarprune export run --format onnx --data digits --out bundle")
def export(
    x: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="What to export.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to make; an older bundle is replaced.")],
    format: Annotated[str, typer.Option(help="onnx, or trt for ONNX and an engine.")] = "onnx",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, bf16 or int8 (int8 needs --data); in and out fp32.")
    ] = "fp32",
    embed_preprocess: Annotated[
        bool,
        typer.Option(
            "--embed-preprocess", help="Take uint8 pixels (n, h, w, 3), normalise in the graph."
        ),
    ] = False,
    batch: Annotated[
        str,
        typer.Option(
            help="Batch sizes of the engine, images: smallest:tuned:largest; one number fixes it, "
            "in the ONNX file too."
        ),
    ] = "1:8:64",
    data: Annotated[
        str | None,
        typer.Option(
            help="Check with these real images too, as in train --data.", show_default="none"
        ),
    ] = None,
    weights: Weights = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Refuse to lose more top-1 (or mIoU) than this, 0..100.",
            show_default="no bound",
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CAPABILITY",
            help="Compute capability of the engine, as 8.9; several with commas.",
            show_default="all that can be built",
        ),
    ] = None,
    engine_compat: Annotated[
        str,
        typer.Option(
            help="Where an enterprise TensorRT engine runs too: none, version, ampere+ or same-cc."
        ),
    ] = "none",
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY.pem",
            help="Sign the manifest with this ed25519 private key.",
            show_default="unsigned",
        ),
    ] = None,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    as_json: AsJson = False,
) -> None:
    """Write a checked bundle: ONNX, engine, manifest.

    Every step is compared with the network in float64; a bundle that does not hold is not written.
    """
    from polarprune_export import exporting

    terminal = Terminal(as_json)
    with progress_on(sys.stderr) as progress:
        answer = exporting.export_bundle(
            x, format=format, precision=precision, batch=batch, data=data, weights=weights,
            num_classes=num_classes, image_size=image_size, out=out,
            max_accuracy_drop=max_accuracy_drop, gpus=gpu or (), engine_compat=engine_compat,
            sign=sign, embed_preprocess=embed_preprocess,
            progress=lambda text, step, steps: progress(text, step, steps, {}),
        )  # fmt: skip
    terminal.show(
        f"Bundle {answer['bundle']}: {answer['precision']}, "
        f"outputs differ from torch in float64 by at most {answer['max_abs_error']:.1e}.",
        f"Runs on: {answer['runs_on']}",
    )
    if answer["random_weights"]:
        terminal.show("Its weights are random, as no --weights were given: good for timing alone.")
    if task_figures(answer):
        before = answer["before"]
        was = "" if before is None else f"; in float32: {task_figures(before)}"
        terminal.show(f"Of the ONNX file: {task_figures(answer)}{was}.")
    if answer["kept_float32"]:
        terminal.show(f"Left in float32: {', '.join(answer['kept_float32'])}")
    if (uneven := answer["uneven_convolutions"]) and precision == "fp32":
        terminal.show(
            f"{uneven} convolution{'s read or have' if uneven > 1 else ' reads or has'} channel "
            "counts that are no multiple of 4: ONNX Runtime is slow at these on a CPU. "
            "`train --align 4` avoids them."
        )
    terminal.result(answer)


@app.command(
    "collapse-onnx", epilog="Example: polarprune collapse-onnx pruned-elsewhere.onnx small.onnx"
)
def collapse_onnx(
    given: Annotated[
        Path, typer.Argument(metavar="IN.onnx", help="A file with filters, gates or scales of 0.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    as_json: AsJson = False,
) -> None:
    """Cut what is zero out of any ONNX file.

    Channels and blocks that no output needs go, whoever made the zeros. Both files are run on
    random inputs and compared; where they differ nothing is written.
    """
    from polarprune_export.onnx_collapse.collapsing import collapse_onnx
    from polarprune_export.onnx_collapse.telling import tell

    report = collapse_onnx(given, out)
    terminal = Terminal(as_json)
    terminal.show(*tell(report))
    terminal.result(report.as_dict())


@app.command(epilog="Example: polarprune verify bundle")
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    public_key: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY.pem",
            help="Require the signature of this ed25519 key, before anything is read.",
            show_default="a signature is not checked",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundle again, on this machine.

    Signature (with --public-key), digests, certificate, ONNX, and its outputs in ONNX Runtime here.
    Digests show accidents; whoever can change the manifest can change them, but not the signature.
    """
    from polarprune_export.bundle_verification import verify_bundle

    answer = verify_bundle(bundle, public_key)
    terminal = Terminal(as_json)
    terminal.show(f"Bundle {bundle} holds: {len(answer['files'])} files with the right digests.")
    terminal.show(f"Signature: {answer['signature']}.")
    for link in answer["parity"]:
        terminal.show(
            f"ONNX Runtime here, {link['inputs']} inputs (n = {link['n']}): largest relative "
            f"error {link['max_rel_error']:.1e}, {link['tolerance']:g} allowed."
        )
    if answer["engine"] is not None:
        terminal.show(f"Engine: {answer['engine']}; runs on: {answer['runs_on']}")
    if answer["unlisted"]:
        terminal.show(f"Files that nobody vouches for: {', '.join(answer['unlisted'])}")
    terminal.result(answer)


@app.command(
    epilog="Example: polarprune profile resnet20 --num-classes 10 --batch 64 --out table.json"
)
def profile(
    x: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="What to measure the layers of.")],
    out: Annotated[Path, typer.Option(help="File to write, JSON; an older one is replaced.")],
    device: options.RunDevice = "cpu",
    backend: Annotated[
        str,
        typer.Option(
            help="onnxruntime (CPU), torch, or auto: torch with --device cuda, else onnxruntime."
        ),
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of torch: fp32, fp16 or bf16.", show_default="fp16 on a GPU, fp32 on a CPU"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images in one call.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads inside one operator.", show_default="all CPUs")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and order.")] = 0,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    as_json: AsJson = False,
) -> None:
    """Measure how long layers take by their channels.

    Time is a staircase in channel counts, another one on each device. The table is what `train
    --target-latency --latency-table` goes by; it takes minutes, best on a quiet machine.
    """
    from polarprune_deploy.profiling import ProfileRequest
    from polarprune_deploy.profiling import profile as profile_layers
    from polarprune_deploy.profiling_words import describe_table

    terminal = Terminal(as_json)
    with progress_on(sys.stderr) as progress:
        table = profile_layers(
            x, out, ProfileRequest(batch, threads, seed, backend, device, precision),
            num_classes=num_classes, image_size=image_size,
            progress=lambda what, done, of: progress(what, done, of, {}),
        )  # fmt: skip
    terminal.show(*describe_table(table), f"Table: {out}")
    terminal.result({"table": str(out), **table.summary()})


@app.command(epilog="Example: polarprune bench run --batch 1,64")
def bench(
    context: typer.Context,
    x: options.BenchSource = None,
    against: options.Against = None,
    batch: options.Batches = None,
    backend: options.Backend = "auto",
    device: options.RunDevice = "cpu",
    threads: options.Threads = None,
    mode: options.Mode = "eager",
    precision: options.TorchPrecision = None,
    scenario: options.Scenario = None,
    cache: options.Cache = "warm",
    rounds: options.Rounds = 40,
    builds: options.Builds = 1,
    across_precisions: options.AcrossPrecisions = False,
    explain: options.Explain = False,
    seed: options.BenchSeed = 0,
    record: options.Record = None,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    server: options.Server = None,
    against_server: options.AgainstServer = None,
    model: options.ServedModel = None,
    clients: options.Clients = None,
    rate: options.Rate = None,
    seconds: options.Seconds = None,
    token_file: options.TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure whether pruned is faster.

    Both sides are timed in turn in one process; a row is their paired ratio with an interval, a
    control of the pruned side against itself, and a verdict. On a GPU the device's own time stands
    beside host latency. A RUN keeps its last record (bench.jsonl). --explain says why it is not
    faster, or not by more, and which three changes would save most. --server loads a server
    instead: percentiles of latency, throughput, and whether its answers stay right under load.
    """
    from polarprune_deploy.load.server_options import check_together

    check_together(_given(context))
    batches = None if batch is None else _numbers(batch, "--batch")
    if x is None:
        plan = _load_plan(scenario, clients, rate, seconds, batches, image_size, seed)
        _bench_server(
            str(server), against_server, plan, rounds, model, token_file, record, as_json
        )  # fmt: skip
        return

    from polarprune_deploy import benching
    from polarprune_deploy.bench_tables import bench_tables
    from polarprune_deploy.explanation_tables import tell

    found: list[Comparison] = []
    explanations: list[Explanation] = []
    with progress_on(sys.stderr, still=True) as progress:
        answer = benching.bench(
            x, against, batches=batches, backend=backend,
            device=device, threads=threads, mode=mode, precision=precision,
            scenario="offline" if scenario is None else scenario,
            cache=cache, rounds=rounds, builds=builds, across_precisions=across_precisions,
            explain=explain, seed=seed, num_classes=num_classes, image_size=image_size,
            record=record, on_row=found.append, on_explanation=explanations.append,
            progress=lambda text, step, steps: progress(text, step, steps, {}),
        )  # fmt: skip
    terminal = Terminal(as_json)
    terminal.show(*bench_tables(found), *(part for each in explanations for part in tell(each)))
    terminal.result(answer)


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that are not at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name != "DEFAULT"}


def _load_plan(
    scenario: str | None,
    clients: str | None,
    rate: str | None,
    seconds: float | None,
    batches: list[int] | None,
    image_size: int | None,
    seed: int,
) -> "LoadPlan":
    from polarprune_deploy.load.load_plan import SECONDS, LoadPlan

    return LoadPlan(
        scenario=scenario or ("closed" if rate is None else "poisson"),
        clients=None if clients is None else tuple(_numbers(clients, "--clients")),
        rates=() if rate is None else tuple(_rates(rate)),
        seconds=SECONDS if seconds is None else seconds,
        batches=None if batches is None else tuple(batches),
        image_size=image_size,
        seed=seed,
    )


def _bench_server(
    server: str,
    against: str | None,
    plan: "LoadPlan",
    rounds: int,
    model: str | None,
    token_file: Path | None,
    record: Path | None,
    as_json: bool,
) -> None:
    from polarprune_deploy.load.load_tables import load_tables, pair_tables
    from polarprune_deploy.load.server_bench import bench_server, check_right, compare_servers

    loads: list[LoadFigures] = []
    pairs: list[ServerPair] = []
    with progress_on(sys.stderr, still=True) as shown:

        def progress(text: str, step: int, steps: int) -> None:
            shown(text, step, steps, {})

        if against is None:
            answer = bench_server(
                server, plan, model=model, token_file=token_file, record=record,
                on_row=loads.append, progress=progress,
            )  # fmt: skip
        else:
            answer = compare_servers(
                server, against, plan, rounds=rounds, model=model, token_file=token_file,
                record=record, on_row=pairs.append, progress=progress,
            )  # fmt: skip
    terminal = Terminal(as_json)
    terminal.show(*(load_tables(loads) if against is None else pair_tables(pairs)))
    terminal.result(answer)
    check_right(answer["rows"])


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option} must be whole numbers with commas, as 1,8,64, got {text!r}"
        ) from None


def _rates(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--rate must be numbers with commas, as 50,100, got {text!r}") from None


@app.command(epilog="Example: polarprune report run")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html", help="The page to write.", show_default="RUN/report.html"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one page about a run.

    One HTML file without anything else: accuracy, MACs and gates over time, every cut with its
    certificate, what is left of each layer, and the latency that `bench` recorded.
    """
    from polarprune.report_page import write_report
    from polarprune.run_folder import BENCH_FILE
    from polarprune_deploy.latency_record_reading import read_latency

    page = write_report(run, out, read_latency(run / BENCH_FILE))
    terminal = Terminal(as_json)
    terminal.show(f"Page: {page}")
    terminal.result({"report": str(page)})


app.command(epilog="Example: polarprune serve bundles --http-port 8000")(serve)


@app.command(epilog="Example: polarprune demo --out polarprune-demo")
def demo(
    out: Annotated[Path, typer.Option(help="Run folder to make; absent or empty.")] = Path(
        "polarprune-demo"
    ),
    as_json: AsJson = False,
) -> None:
    """Run the whole chain on real digits, in minutes.

    Trains a ResNet-20 dense and pruned, exports both, times them, draws two pictures, and ends with
    a table. Exits with 1 where the result is not what a demo should show.
    """
    from polarprune_deploy.demonstration import demo_table, run_demo

    terminal = Terminal(as_json)
    with progress_on(sys.stderr) as progress:
        result = run_demo(out, progress)
    terminal.show(demo_table(result), *result.remarks)
    terminal.result(result.as_dict())
    if result.missed:
        raise PolarpruneError(f"the demo missed its bounds: {'; '.join(result.missed)}")


def main() -> None:
    """The console entry point."""
    app(prog_name="polarprune")


if __name__ == "__main__":
    main()
