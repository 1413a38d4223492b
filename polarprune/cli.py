r"""The command line: its verbs, each in a module of `commands`.

    polarprune train --model resnet20 --data digits --image-size 16 --epochs 10 --out run
    polarprune --help

Nothing heavy is imported until a verb needs it, so that help is immediate.
"""

from typing import Annotated

import typer

import polarprune
from polarprune.commands.bench_command import bench
from polarprune.commands.collapse_onnx_command import collapse_onnx
from polarprune.commands.demo_command import demo
from polarprune.commands.deploy_commands import deploy_app
from polarprune.commands.errors import OneLineErrors
from polarprune.commands.export_command import export
from polarprune.commands.inspect_command import inspect
from polarprune.commands.profile_command import profile
from polarprune.commands.report_command import report
from polarprune.commands.serve_command import serve
from polarprune.commands.train_command import train
from polarprune.commands.verify_command import verify

app = typer.Typer(
    name="polarprune",
    cls=OneLineErrors,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Train an image network once, cut what it can do without, check it, ship it.",
    epilog="Start with: polarprune demo",
)


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


for verb, example in (
    (train, "Example: polarprune train --model resnet20 --data cifar10 --out run"),
    (inspect, "Example: polarprune inspect torchvision:resnet18 --image-size 224"),
    (export, "Example: polarprune export run --format onnx --data digits --out bundle"),
    (collapse_onnx, "Example: polarprune collapse-onnx pruned-elsewhere.onnx small.onnx"),
    (verify, "Example: polarprune verify bundle"),
    (profile, "Example: polarprune profile resnet20 --num-classes 10 --batch 64 --out table.json"),
    (bench, "Example: polarprune bench run --batch 1,64"),
    (report, "Example: polarprune report run"),
    (serve, "Example: polarprune serve bundles --http-port 8000"),
    (demo, "Example: polarprune demo --out polarprune-demo"),
):
    app.command(verb.__name__.replace("_", "-"), epilog=example)(verb)
app.add_typer(deploy_app)


def main() -> None:
    """The console entry point."""
    app(prog_name="polarprune")


if __name__ == "__main__":
    main()
