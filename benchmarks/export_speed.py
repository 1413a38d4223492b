"""From a network to a verified bundle, against a bare torch.onnx.export of the same network.

    python -m benchmarks.export_speed
    python -m benchmarks.export_speed --model resnet20 --image-size 32 --rounds 6 --record x.json

Both in turn in one process, in an order that is drawn anew each round; wall seconds on one thread.
The ratio is the bundle's time over the bare export's.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.records import describe_machine
from polarprune import build_network
from polarprune_deploy.statistics import paired_ratio
from polarprune_export import write_bundle
from polarprune_export.bundle import BundleContents

RECORD = Path(__file__).parent / "results" / "export_speed.json"


def timed(work: Callable[[Path], object]) -> float:
    """Wall seconds in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        work(Path(folder))
        return time.perf_counter() - began


def main() -> None:
    """Time, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net = build_network(args.model).eval()
    example = torch.randn(2, 3, args.image_size, args.image_size)

    def bare(folder: Path) -> None:
        free = torch.export.Dim("batch", min=1)
        torch.onnx.export(
            net, (example,), folder / "model.onnx", dynamo=True, external_data=False,
            dynamic_shapes=({0: free},), verbose=False,
        )  # fmt: skip

    def bundle(folder: Path) -> None:
        write_bundle(net, folder / "bundle", example, BundleContents("network"))

    works = {"bundle": bundle, "bare": bare}
    for work in works.values():
        timed(work)
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(args.rounds):
        for name in order.sample(list(works), len(works)):
            seconds[name].append(timed(works[name]))
    ratio = paired_ratio(seconds["bundle"], seconds["bare"], confidence=0.95)
    record = {
        "what": f"{args.model} at {args.image_size} pixels: seconds of each side, one thread",
        "machine": describe_machine(),
        "n": args.rounds,
        "seconds": seconds,
        "ratio": {"median": ratio.speedup, "low": ratio.ci_low, "high": ratio.ci_high},
    }
    args.record.write_text(json.dumps(record, indent=1) + "\n")
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    print(
        f"bundle {medians['bundle']:.1f} s, bare export {medians['bare']:.1f} s: "
        f"{ratio.speedup:.2f} [{ratio.ci_low:.2f}, {ratio.ci_high:.2f}]"
    )


if __name__ == "__main__":
    main()
