"""The options of `train`, in the order of its help."""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Run folder to make; absent or empty.")]
Target = Annotated[
    float | None,
    typer.Option(
        help="Kept MACs over dense MACs, a bound, 0..1; 1 trains dense.", show_default="0.5"
    ),
]
TargetParams = Annotated[
    float | None,
    typer.Option(help="The same of parameters, in place of --target.", show_default="none"),
]
TargetLatency = Annotated[
    float | None,
    typer.Option(
        help="The same of the latency that --latency-table predicts.", show_default="none"
    ),
]
LatencyTable = Annotated[
    Path | None,
    typer.Option(help="What `polarprune profile` measured for --model.", show_default="none"),
]
Task = Annotated[str, typer.Option(help="classification or segmentation.")]
Method = Annotated[
    str,
    typer.Option(
        help="How gates decide: consensus, relaxation, mask-predictor, random or package:Class."
    ),
]
Ejector = Annotated[
    str | None,
    typer.Option(help="With relaxation: gaussian or annealed.", show_default="gaussian"),
]
Mass = Annotated[
    float | None,
    typer.Option(
        help="With mask-predictor, in place of --target: kept share of each heat map, 0..1.",
        show_default="0.9",
    ),
]
Heads = Annotated[
    str | None,
    typer.Option(help="With mask-predictor: decoupled or joint.", show_default="decoupled"),
]
Granularity = Annotated[str, typer.Option(help="What may go: block, channel or both.")]
Align = Annotated[
    int | None,
    typer.Option(
        help="Round kept channels of a site up to a multiple of this. ONNX Runtime is fast on "
        "a CPU from 4 on, and faster at 16 or 32; a GPU's tensor cores take 8.",
        show_default="1, or what --latency-table favours",
    ),
]
Epochs = Annotated[int, typer.Option(help="Passes over the training images.")]
Teacher = Annotated[
    Path | None,
    typer.Option(help="A finished run to learn from too.", show_default="none"),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Let torch.compile make the steps faster.")
]
Seed = Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of --out.")]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(help="Steps between checkpoints inside of an epoch.", show_default="five minutes"),
]
BatchSize = Annotated[int, typer.Option(help="Images a step.")]
Lr = Annotated[
    float | None,
    typer.Option(help="Peak learning rate.", show_default="0.2 x batch size / 128"),
]
Schedule = Annotated[str, typer.Option(help="one-cycle or cosine.")]
Momentum = Annotated[float, typer.Option(help="Nesterov momentum, 0..1.")]
WeightDecay = Annotated[float, typer.Option(help="L2 on weights, not on norms or biases, 0..1.")]
LabelSmoothing = Annotated[float, typer.Option(help="Mass spread over all classes, 0..1.")]
CropSize = Annotated[
    int | None,
    typer.Option(
        help="Side of the squares that segmentation trains on, pixels.",
        show_default="--image-size",
    ),
]
Precision = Annotated[
    str, typer.Option(help="auto, fp32 or bf16 (autocast); auto takes bf16 where it is fast.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Workers = Annotated[
    int, typer.Option(help="Reading processes, for data that do not fit in memory.")
]
