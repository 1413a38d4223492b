"""Does rounding kept channel counts up to a multiple pay? ONNX Runtime on the CPU, digits.

    python -m benchmarks.alignment                  # about 6 minutes on two cores
    python -m benchmarks.alignment --epochs 1 --record rehearsal.json

Trains ResNet-20 once for each multiple, to at most half of the MACs, and times each small network
against its own base architecture, paired, with an A/A control.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.records import describe_machine
from polarprune.runs.training import TrainConfig, train
from polarprune_deploy import bench

RECORD = Path(__file__).parent / "results" / "alignment.json"
MULTIPLES = (1, 4, 8, 16)
BATCHES = (1, 64)
SEED = 0


def measure(align: int, epochs: int, folder: Path) -> dict[str, Any]:
    """One training run and its paired latency."""
    config = TrainConfig(
        model="resnet20",
        data="digits",
        out=folder / f"align-{align}",
        image_size=16,
        epochs=epochs,
        batch_size=32,
        align=align,
        seed=SEED,
    )
    result = train(config).as_dict()
    result.pop("run")
    rows = bench(config.out, batches=BATCHES, seed=SEED)["rows"]
    return {"align": align, "result": result, "rows": rows}


def main() -> None:
    """Measure every multiple and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(align, args.epochs, Path(folder)) for align in MULTIPLES]
    record = {
        "what": "ResNet-20, digits 16x16, target 0.5, latency against dense, ONNX Runtime CPU",
        "n": 1,
        "seed": SEED,
        "test_images": 360,
        "machine": describe_machine(),
        "runs": runs,
    }
    args.record.write_text(json.dumps(record, indent=1) + "\n")
    for run in runs:
        speeds = "  ".join(
            f"batch {r['batch']}: {r['speedup']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}] "
            f"{r['verdict']}"
            for r in run["rows"]
        )
        print(f"align {run['align']:2}: kept {run['result']['macs_ratio']:.3f}  {speeds}")


if __name__ == "__main__":
    main()
