"""Channels last or not: in which layout is a training step of a cut network fast on a CPU?

    OMP_NUM_THREADS=2 python -m benchmarks.layout_speed          # about two minutes on two cores
    python -m benchmarks.layout_speed --rounds 6 --batch-size 8 --record FILE      # a rehearsal

Paired: each round trains two steps of each network in each layout and precision, in random order.
What `polarprune.devices.fast_layout` decides rests on it.
"""

import json
import random
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn import functional as F

from benchmarks.records import describe_machine
from polarprune.networks.cifar_resnet import CifarResNet
from polarprune_deploy.statistics import corrected_confidence, paired_ratio

RECORD = Path(__file__).parent / "results" / "layout_speed.json"
WIDTHS = ((16, 32, 64), (11, 23, 45), (16, 16, 48), (16, 24, 48))
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
PRECISIONS = ("bf16", "fp32")


def make_step(
    widths: tuple[int, int, int], layout: torch.memory_format, bf16: bool, batch_size: int
) -> Callable[[], None]:
    """A training step of ResNet-20 with these channels a stage."""
    torch.manual_seed(0)
    net = CifarResNet(3, 10, widths).train().to(memory_format=layout)
    images = torch.randn(batch_size, 3, 32, 32).to(memory_format=layout)
    labels = torch.randint(0, 10, (batch_size,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = net(images)
        optimizer.zero_grad()
        F.cross_entropy(outputs.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def main(
    rounds: Annotated[int, typer.Option(help="Of two steps a side.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    record: Annotated[Path, typer.Option(help="Where it is written.")] = RECORD,
) -> None:
    """Measure and record."""
    sides = list(product(WIDTHS, LAYOUTS, PRECISIONS))
    steps = {s: make_step(s[0], LAYOUTS[s[1]], s[2] == "bf16", batch_size) for s in sides}
    seconds: dict[tuple[tuple[int, int, int], str, str], list[float]] = {s: [] for s in sides}
    for number in range(rounds + 1):  # the first one warms up
        for side in random.Random(number).sample(sides, len(sides)):
            began = time.perf_counter()
            for _ in range(2):
                steps[side]()
            if number:
                seconds[side].append((time.perf_counter() - began) / 2)
    rows = []
    confidence = corrected_confidence(len(WIDTHS) * len(PRECISIONS))
    for widths, precision in product(WIDTHS, PRECISIONS):
        own = {layout: seconds[widths, layout, precision] for layout in LAYOUTS}
        found = paired_ratio(own["channels_last"], own["contiguous"], confidence=confidence)
        ms = {layout: 1000 * statistics.median(own[layout]) for layout in LAYOUTS}
        ratio = found.as_json()
        rows.append(
            {
                "widths": widths, "precision": precision, "ms": ms,
                "channels_last_over_contiguous": ratio, "seconds": own,
            }
        )  # fmt: skip
        shown = ", ".join(f"{layout} {value:.1f} ms" for layout, value in ms.items())
        print(f"{widths} {precision}: {shown}, {found.speedup:.2f}")
    document = {
        "what": "seconds of a training step of ResNet-20 by width, layout and precision, paired",
        "machine": describe_machine(),
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "rounds": rounds,
        "rows": rows,
    }
    record.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
