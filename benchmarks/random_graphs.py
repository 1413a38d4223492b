"""Are cuts of random networks exact? Thousands of seeds, four kinds of decisions each.

    python -m benchmarks.random_graphs          # 2,000 seeds: half an hour on two cores
    python -m benchmarks.random_graphs --n 20 --record rehearsal.json

A network is exact when every check of tests/random_graph_checks.py holds, refused when attach_gates
declines it in words, wrong when a check fails, a crash when anything else is raised. Exits with 1
when any is wrong or crashed; `Recipe.of_seed(SEED)` of tests/random_graphs.py builds it again.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; one process a core
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from random_graph_checks import STYLES, check_network
from random_graphs import Recipe

from benchmarks.records import describe_machine

RECORD = Path(__file__).parent / "results" / "random_graphs.json"


def examine(seed: int) -> dict[str, Any]:
    """What one seed's network shows; never raises."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    recipe = Recipe.of_seed(seed)
    found: dict[str, Any] = {"seed": seed, "operators": sorted(set(recipe.operators()))}
    try:
        report = check_network(recipe)
    except Exception as error:
        kind = "wrong" if isinstance(error, AssertionError) else "crash"
        return {**found, "outcome": kind, "reason": f"{type(error).__name__}: {_line(error)}"}
    if report.refused is not None:
        return {**found, "outcome": "refused", "reason": _line(report.refused)}
    return {**found, "outcome": "exact", **_numbers(vars(report))}


def _numbers(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "refused"}


def _line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _alike(reason: str) -> str:
    """A reason without the numbers that part it from others of its kind."""
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "N", reason)


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, reasons and extremes over all seeds."""
    by = {kind: [r for r in results if r["outcome"] == kind]
          for kind in ("exact", "refused", "wrong", "crash")}  # fmt: skip
    exact = by["exact"]
    unsaved = Counter(_alike(r["not_saved"]) for r in exact if r["not_saved"] is not None)
    shares = sorted(share for r in exact for share in r["shares"])
    return {
        "outcomes": {kind: len(found) for kind, found in by.items()},
        "refusals": dict(Counter(_alike(r["reason"]) for r in by["refused"]).most_common()),
        "not_saved": dict(unsaved.most_common()),
        "failures": [
            {key: r[key] for key in ("seed", "outcome", "reason")}
            for r in by["wrong"] + by["crash"]
        ],
        "cuts": sum(r["cuts"] for r in exact),
        "repaired_decisions": sum(r["repairs"] for r in exact),
        "largest_relative_error": max((r["largest_error"] for r in exact), default=None),
        "with_a_channel_site": sum(r["units"] > 0 for r in exact),
        "units_for_an_output_channel": sum(r["units"] for r in exact)
        / max(1, sum(r["producers"] for r in exact)),
        "kept_macs_share": {
            "median": shares[len(shares) // 2] if shares else None,
            "least": shares[0] if shares else None,
        },
        "networks_with_operator": dict(
            sorted(Counter(o for r in results for o in r["operators"]).items())
        ),
    }


def main() -> int:
    """Examine all seeds and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    seeds = range(args.start, args.start + args.n)
    fresh = multiprocessing.get_context("spawn")  # a fork of torch may hang at its end
    with ProcessPoolExecutor(args.jobs, fresh) as pool:
        results = []
        for result in pool.map(examine, seeds, chunksize=4):
            results.append(result)
            if result["outcome"] in ("wrong", "crash") or len(results) % 100 == 0:
                print(len(results), result["seed"], result["outcome"], result.get("reason", ""),
                      file=sys.stderr, flush=True)  # fmt: skip
    record = {
        "what": "random networks, random decisions: collapsed against frozen, float64, both modes",
        "n": args.n,
        "start": args.start,
        "decisions": list(STYLES),
        **summarise(results),
        "machine": describe_machine(),
    }
    args.record.write_text(json.dumps(record, indent=1) + "\n")
    outcomes = record["outcomes"]
    print(", ".join(f"{count} {kind}" for kind, count in outcomes.items()), "of", args.n)
    for failure in record["failures"][:20]:
        print(failure)
    return 1 if outcomes["wrong"] or outcomes["crash"] else 0


if __name__ == "__main__":
    sys.exit(main())
