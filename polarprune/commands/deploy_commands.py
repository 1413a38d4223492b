r"""`polarprune deploy`: a bundle handed to the engines that serve a fleet.

polarprune deploy triton bundle --out repository
polarprune deploy kserve bundle --out kserve
"""

from pathlib import Path
from typing import Annotated

import typer

from polarprune.commands.options import AsJson
from polarprune.terminal import Terminal

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")]
PublicKey = Annotated[
    Path | None,
    typer.Option(
        metavar="KEY.pem",
        help="Require the signature of this ed25519 key, before anything is read.",
        show_default="a signature is not checked",
    ),
]

deploy_app = typer.Typer(
    name="deploy",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Hand a bundle to Triton or KServe.",
    epilog="Start with: polarprune deploy triton bundle --out repository",
)


@deploy_app.command(epilog="Example: polarprune deploy triton bundle --out repository")
def triton(
    bundle: Bundle,
    out: Annotated[
        Path, typer.Option(help="Model repository: absent, or one to which a model is added.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the model.", show_default="the bundle's")
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(help="Of the model.", show_default="1, or the next one of a model there"),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="onnxruntime, tensorrt, or auto: an enterprise TensorRT engine where there is one."
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: a GPU where Triton has one.")
    ] = "auto",
    accelerate: Annotated[
        bool,
        typer.Option(
            "--accelerate",
            help="Let Triton's ONNX Runtime build a TensorRT engine as it loads the model.",
        ),
    ] = False,
    instances: Annotated[int, typer.Option(help="Copies of the model on each device.")] = 1,
    max_queue_size: Annotated[
        int, typer.Option(help="Requests that may wait; one more is refused at once.")
    ] = 256,
    timeout_ms: Annotated[
        int, typer.Option(help="How long a request may wait before it is refused, ms.")
    ] = 1000,
    queue_delay_us: Annotated[
        int, typer.Option(help="How long a request waits for others to share its batch, us.")
    ] = 0,
    public_key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Write a model repository for Triton.

    An enterprise TensorRT engine becomes a plan. A TensorRT-RTX engine is not one: then the ONNX
    file is written, for the ONNX Runtime backend. Other models and versions stay as they are.
    """
    from polarprune_deploy.fleet.triton_config import TritonOptions
    from polarprune_deploy.fleet.triton_repository import write_triton_repository

    options = TritonOptions(
        backend=backend, device=device, instances=instances, max_queue_size=max_queue_size,
        timeout_ms=timeout_ms, queue_delay_us=queue_delay_us, accelerate=accelerate,
    )  # fmt: skip
    answer = write_triton_repository(
        bundle, out, name=name, version=version, options=options, public_key=public_key
    )
    batches = answer["max_batch_size"]
    terminal = Terminal(as_json)
    terminal.show(
        f"Model {answer['model']}, version {answer['version']}: {answer['file']}",
        f"{answer['precision']}, Triton's {answer['backend']} backend, "
        f"{f'batches of up to {batches}' if batches else 'requests one by one'}.",
        f"Runs on: {answer['runs_on']}",
        *answer["remarks"],
        f"Start it with: tritonserver --model-repository={out.absolute()}",
    )
    terminal.result(answer)


@deploy_app.command(epilog="Example: polarprune deploy kserve bundle --out kserve")
def kserve(
    bundle: Bundle,
    out: Annotated[Path, typer.Option(help="Folder to make; absent or empty.")],
    runtime: Annotated[
        str,
        typer.Option(
            help="polarprune, the embedded server in an image of its own, or triton: KServe's."
        ),
    ] = "polarprune",
    name: Annotated[
        str | None, typer.Option(help="Of the service.", show_default="from the bundle's")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="What to call the image, with its registry.", show_default="name:digest"),
    ] = None,
    storage_uri: Annotated[
        str | None,
        typer.Option(
            help="Where KServe fetches the bundle or model repository, as s3://bucket/folder.",
            show_default="the image holds the bundle",
        ),
    ] = None,
    min_replicas: Annotated[int, typer.Option(help="Replicas at rest.")] = 1,
    max_replicas: Annotated[int, typer.Option(help="Replicas under load.")] = 3,
    scale_metric: Annotated[str, typer.Option(help="cpu or memory.")] = "cpu",
    scale_target: Annotated[
        int, typer.Option(help="Use of what a replica asks for, percent, above which more start.")
    ] = 70,
    cpu: Annotated[str, typer.Option(help="CPUs of a replica.")] = "2",
    memory: Annotated[str, typer.Option(help="Memory of a replica.")] = "2Gi",
    gpus: Annotated[
        int | None,
        typer.Option(
            help="GPUs of a replica, with --runtime triton.", show_default="what the bundle needs"
        ),
    ] = None,
    drain_seconds: Annotated[
        int, typer.Option(help="How long a replica that is told to end goes on, seconds.")
    ] = 30,
    wheel: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.whl", help="polarprune's wheel for the image.", show_default="pip's"
        ),
    ] = None,
    public_key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Write an InferenceService for KServe, and an image's Dockerfile.

    With probes, resources and scaling, for KServe's Standard mode (0.16 and later). Nothing is
    built or applied; the steps that are left are printed.
    """
    from polarprune_deploy.fleet.kserve_manifest import write_kserve
    from polarprune_deploy.fleet.kserve_service import KServeOptions

    options = KServeOptions(
        runtime=runtime, name=name, image=image, storage_uri=storage_uri,
        min_replicas=min_replicas, max_replicas=max_replicas, scale_metric=scale_metric,
        scale_target=scale_target, cpu=cpu, memory=memory, gpus=gpus, drain_seconds=drain_seconds,
    )  # fmt: skip
    answer = write_kserve(bundle, out, options, wheel=wheel, public_key=public_key)
    terminal = Terminal(as_json)
    terminal.show(
        f"InferenceService {answer['service']}: {answer['manifest']}",
        f"Model {answer['model']} ({answer['precision']}), in "
        + (answer["image"] or "KServe's Triton, from a model repository")
        + ".",
        *answer["remarks"],
        "What is left to do:",
        *(f"  {step}" for step in answer["steps"]),
    )
    terminal.result(answer)
