"""One pass on all of CIFAR-10: ResNet-20, 20 epochs, kept MACs at most 0.5, against dense.

Both runs have the same recipe and seed. Each goes on where it stopped; run them side by side, one
thread each, and once more to write the record:

    export OMP_NUM_THREADS=1
    python -m benchmarks.one_pass_cifar10 --data TREE --work FOLDER --only dense &
    python -m benchmarks.one_pass_cifar10 --data TREE --work FOLDER --only pruned
    python -m benchmarks.one_pass_cifar10 --data TREE --work FOLDER

TREE is a class-folder tree of CIFAR-10. A rehearsal of seconds: --data digits --epochs 2.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.records import describe_machine
from polarprune.run_folder import RUN_FILE, RunFolder
from polarprune.training import TrainConfig, train

RECORD = Path(__file__).parent / "results" / "one_pass_cifar10.json"
TARGETS = {"dense": 1.0, "pruned": 0.5}


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train one side, or read its figures where it is finished."""
    out = Path(args.work) / name
    config = TrainConfig(
        model="resnet20",
        data=args.data,
        out=out,
        target=TARGETS[name],
        epochs=args.epochs,
        batch_size=64,
        seed=0,
        resume=(out / RUN_FILE).exists(),
    )

    def report(text: str, step: int, steps: int, figures: dict[str, float]) -> None:
        if step % 200 == 0:
            print(f"{name} {text} {step}/{steps} {figures}", file=sys.stderr, flush=True)

    result = train(config, report).as_dict()
    folder = RunFolder(out)
    result.pop("run")
    return {
        "result": result,
        "config": {**folder.config, "data": Path(args.data).name},
        "versions": folder.document["versions"],
        "git": folder.document["git"],
        "threads": folder.document["threads"],
        "bf16": folder.document["bf16"],
        "metrics": folder.metrics(),
        "cuts": folder.cuts(),
    }


def main() -> None:
    """Run one side, or both and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=list(TARGETS))
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    if args.only:
        run(args.only, args)
        return
    sides = {name: run(name, args) for name in TARGETS}
    dense, pruned = sides["dense"]["result"], sides["pruned"]["result"]
    record = {
        "what": "ResNet-20 on CIFAR-10, one pass, n = 1 seed, test top-1 of the last epoch",
        "n": 1,
        "test_images": 10_000,
        "machine": describe_machine(),
        "seconds_ratio": pruned["seconds"] / dense["seconds"],
        **sides,
    }
    args.record.parent.mkdir(parents=True, exist_ok=True)
    args.record.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{'':8}{'top-1':>8}{'MACs':>14}{'kept':>8}{'params':>10}{'train MACs':>12}{'hours':>8}")
    for name, side in sides.items():
        r = side["result"]
        print(
            f"{name:8}{r['top1']:8.4f}{r['macs']:14,}{r['macs_ratio']:8.3f}{r['params']:10,}"
            f"{r['train_macs_ratio']:12.3f}{r['seconds'] / 3600:8.2f}"
        )


if __name__ == "__main__":
    main()
