"""Options that several verbs take."""

from typing import Annotated

import typer

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Last line of stdout is one JSON object; words go to stderr."),
]
Classes = Annotated[
    int | None,
    typer.Option(
        "--num-classes", help="Classes of a MODEL.", show_default="the zoo's or data's own"
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size", help="Side of the square input, pixels.", show_default="the zoo's or data's"
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="resnet20/32/44/56/110, vgg16_bn, unet, torchvision:NAME, timm:NAME or "
        "package:factory."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="digits, cifar10, cifar100, or a folder: train/<class>/* and test/<class>/*, or, for "
        "segmentation, image/* and label/*."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Start from these: .safetensors, .pt or .pth, or `pretrained`.",
        show_default="random",
    ),
]
RunDevice = Annotated[str, typer.Option(help="cpu or cuda.")]
