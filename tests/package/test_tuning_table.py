"""The table of what was tried: the best first, shares of the whole network's MACs, no row lost."""

import json
from pathlib import Path

from benchmarks.tuning.__main__ import table
from benchmarks.tuning.candidates import CANDIDATES


def _record(folder: Path, name: str, seed: int, **result: float) -> None:
    document = {
        "candidate": name, "what": CANDIDATES[name].what, "seed": seed, "result": result,
        "metrics": [{"loss": 2.0}, {"loss": 0.5 + seed}],
    }  # fmt: skip
    (folder / f"{name}-{seed}.json").write_text(json.dumps(document))


def test_rows_are_compared_with_the_whole_network(tmp_path: Path) -> None:
    whole = {"dense_macs": 1000, "train_macs_ratio": 1.0}
    _record(tmp_path, "dense", 0, top1=0.88, macs=1000, **whole)
    _record(tmp_path, "narrowed", 0, top1=0.86, macs=496, dense_macs=496, train_macs_ratio=1.0)
    _record(
        tmp_path, "torch-pruning", 0, top1=0.87, macs=500, dense_macs=1000, train_macs_ratio=0.75
    )
    for seed, top1 in enumerate((0.89, 0.90)):
        _record(
            tmp_path, "default", seed, top1=top1, macs=499, dense_macs=1000, train_macs_ratio=0.7,
            agreement=0.99,
        )  # fmt: skip
    rows = [line.strip("| ").split(" | ") for line in table(tmp_path).splitlines()[2:6]]
    assert [row[0] for row in rows] == ["default", "dense", "torch-pruning", "narrowed"]
    assert rows[0][2:] == ["2", "89.00, 90.00", "1.0000", "0.499", "0.700", "0.990"]
    assert rows[3][5:7] == ["0.496", "0.496"]
    assert rows[2][7] == "-", "Torch-Pruning has no gates that could agree"
