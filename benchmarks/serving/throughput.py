"""How much of the bare network's speed is left behind the server.

    python -m benchmarks.serving throughput --bundle resnet20-bundle [--threads N]

In rounds, in turn: the server under a closed loop that keeps its batches full and under one client,
and the same session in a loop at the same batch size and at batch 1; and a session whose threads
spin while they wait for each other, ONNX Runtime's usual way, which a server does without. Then
Poisson arrivals at half of the measured throughput, in turn with a batcher that costs nothing.
Client and server share the machine's cores; while a bare loop runs both are idle.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.serving.bare_loops import BareLoop, slow_share
from benchmarks.serving.ideal_batcher import ideal_latencies, real_latencies
from benchmarks.serving.server_process import ServerProcess
from benchmarks.serving.study_records import add_study, ratio_with_interval
from polarprune_deploy.load.endpoint import parse_endpoint
from polarprune_deploy.load.load_plan import LoadPlan
from polarprune_deploy.load.measuring import measure
from polarprune_deploy.load.model_metadata import read_model
from polarprune_deploy.load.samples import Outcome
from polarprune_deploy.load.schedule import poisson_arrivals
from polarprune_deploy.load.targets import Target, look_at

SIDES = ("server", "bare", "spinning")


def study(bundle: Path, threads: int | None, rounds: int, seconds: float, tails: int) -> Any:
    """All comparisons of one bundle."""
    options = ["--backend", "onnxruntime", "--grpc-port", "-1"]
    if threads is not None:
        options += ["--threads", str(threads)]
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(bundle, Path(folder) / "log", *options) as server,
    ):
        server.wait_ready()
        model = json.loads(server.ask("/status")[1])["models"][0]
        size = model["batch"]["size"]
        endpoint = parse_endpoint(server.url)
        target = look_at(endpoint, read_model(endpoint), batch=None)
        bare = {
            "bare": BareLoop(bundle, threads, spinning=False),
            "spinning": BareLoop(bundle, threads, spinning=True),
        }
        clients = max(4, 2 * size)
        full, alone, share = _in_turn(target, bare, size, clients, rounds, seconds)
        rate = 0.5 * median(full["server"])
        poisson = _tails(target, bare["bare"], size, rate, seconds, tails)
        statistics = json.loads(server.ask("/v2/models/stats")[1])["model_stats"][0]
    return {
        "bundle": bundle.name,
        "network": model["network"],
        "runs": model["runs"],
        "batch": model["batch"],
        "clients": clients,
        "rounds": rounds,
        "seconds_a_block": seconds,
        "slow_share_of_bare_runs": share,
        "full": _compared(full),
        "alone": _compared(alone),
        "poisson": poisson,
        "batch_stats": [
            {"batch_size": b["batch_size"], "count": b["compute_infer"]["count"]}
            for b in statistics["batch_stats"]
        ],
    }


def _in_turn(
    target: Target, bare: dict[str, BareLoop], size: int, clients: int, rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]], float]:
    """Images a second with full batches, ms of one image, share of disturbed time in bare runs."""
    full: dict[str, list[float]] = {side: [] for side in SIDES}
    alone: dict[str, list[float]] = {side: [] for side in SIDES}
    shares = []
    generator = np.random.default_rng(0)
    for number in range(rounds):
        plan = LoadPlan(seconds=seconds, seed=number)
        for side in generator.permutation(SIDES).tolist():
            if side == "server":
                loaded = measure(target, plan, clients, None)
                single = measure(target, plan, 1, None)
                _check(loaded)
                _check(single)
                full[side].append(loaded.requests_per_second)
                alone[side].append(median(single.latencies_ms(Outcome.OK)))
                continue
            times = bare[side].seconds_of_runs(size, seconds)
            full[side].append(size * len(times) / sum(times))
            ones = bare[side].seconds_of_runs(1, seconds)
            alone[side].append(1e3 * median(ones))
            shares += [slow_share(times), slow_share(ones)]
        words = [f"{full[side][-1]:.0f}/s, {alone[side][-1]:.2f} ms" for side in SIDES]
        print(f"round {number}: " + "; ".join(map(" ".join, zip(SIDES, words, strict=True))))
    return full, alone, float(np.mean(shares))


def _compared(found: dict[str, list[float]]) -> dict[str, Any]:
    return {
        **found,
        **ratio_with_interval(found["server"], found["bare"]),
        "over_spinning": ratio_with_interval(found["server"], found["spinning"]),
    }


def _tails(
    target: Target, bare: BareLoop, size: int, rate: float, seconds: float, tails: int
) -> dict[str, Any]:
    """Poisson loads, each in turn with the ideal batcher under the same arrivals."""
    runs = _runs(bare, size)
    rows = []
    for seed in range(tails):
        plan = LoadPlan(
            scenario="poisson", rates=(rate,), seconds=max(3 * seconds, 400 / rate), seed=seed
        )
        arrivals = poisson_arrivals(rate, plan.warm_up + plan.seconds, plan.seed)
        counted = arrivals >= plan.warm_up
        if seed % 2:
            real = real_latencies(arrivals.tolist(), bare.run, size)
        loaded = measure(target, plan, 256, rate)
        if not seed % 2:
            real = real_latencies(arrivals.tolist(), bare.run, size)
        _check(loaded)
        drawn = ideal_latencies(arrivals.tolist(), runs, size, seed)
        sides = {
            "": np.array(loaded.latencies_ms(Outcome.OK)),
            "ideal_": np.array(real)[counted] * 1e3,
            "drawn_": np.array(drawn)[counted] * 1e3,
        }
        row = {"seed": seed, "n": len(sides[""]), "late": loaded.late} | {
            f"{side}p{q}_ms": float(np.percentile(times, q))
            for side, times in sides.items()
            for q in (50, 90, 99)
        }
        rows.append(row)
        print(
            f"poisson {rate:.0f}/s: p50 {row['p50_ms']:.2f}, ideal {row['ideal_p50_ms']:.2f}; p99 "
            f"{row['p99_ms']:.2f}, ideal {row['ideal_p99_ms']:.2f}, drawn {row['drawn_p99_ms']:.2f}"
        )

    def against(side: str, q: int) -> dict[str, Any]:
        return ratio_with_interval(
            [row[f"p{q}_ms"] for row in rows], [row[f"{side}_p{q}_ms"] for row in rows]
        )

    return {
        "rate": rate, "runs": rows, **against("ideal", 99), "p50": against("ideal", 50),
        "over_drawn": against("drawn", 99),
    }  # fmt: skip


def _runs(bare: BareLoop, size: int) -> dict[int, list[float]]:
    return {batch: bare.seconds_of_runs(batch, 0.5, least=20) for batch in range(1, size + 1)}


def _check(loaded: Any) -> None:
    bad = loaded.wrong + loaded.count(Outcome.FAILED) + loaded.count(Outcome.REJECTED)
    if bad:
        raise SystemExit(f"{bad} requests were wrong, refused or failed: {loaded.row()}")


def main(arguments: list[str]) -> None:
    """Measure, and add to the record."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving throughput")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--tails", type=int, default=12)
    args = parser.parse_args(arguments)
    found = study(args.bundle, args.threads, args.rounds, args.seconds, args.tails)
    key = f"{found['network']}, threads {args.threads or 'all'}"
    add_study("throughput", key, found)
    print(f"{key}, batch {found['batch']['size']}, {args.rounds} rounds")
    for words, part in (
        ("full, images/s of the bare loop's", found["full"]),
        ("  of one whose threads spin", found["full"]["over_spinning"]),
        ("one client, p50 over a bare run's", found["alone"]),
        ("  over one whose threads spin", found["alone"]["over_spinning"]),
        ("Poisson, p99 over the ideal batcher's", found["poisson"]),
        ("  p50", found["poisson"]["p50"]),
        ("  p99 over one with drawn runs", found["poisson"]["over_drawn"]),
    ):
        print(f"  {words}: {part['ratio']:.3f} [{part['low']:.3f}, {part['high']:.3f}]")
