"""How much of the bare network's speed is left behind the server.

    python -m benchmarks.serving throughput --bundle resnet20-bundle [--threads N]

In rounds, in turn: the server under a closed loop that keeps its batches full, and bare loops at
the same batch size: as many at once as the server computes, each on one core, and one on all cores.
Then one client, and the session on all cores at batch 1. Then Poisson arrivals at half of the
measured throughput, against a simulated batcher that costs nothing and computes one batch at a time
on all cores. Client and server share the machine's cores; while a bare loop runs both are idle.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.serving.bare_loops import BareLoop
from benchmarks.serving.ideal_batcher import ideal_latencies
from benchmarks.serving.server_process import ServerProcess
from benchmarks.serving.study_records import add_study, ratio_with_interval
from polarprune_deploy.load.endpoint import parse_endpoint
from polarprune_deploy.load.load_plan import LoadPlan
from polarprune_deploy.load.measuring import measure
from polarprune_deploy.load.model_metadata import read_model
from polarprune_deploy.load.samples import Outcome
from polarprune_deploy.load.schedule import poisson_arrivals
from polarprune_deploy.load.targets import Target, look_at

TAILS = 6
"""Poisson loads; fewer give no interval of a median."""


def study(bundle: Path, threads: int | None, rounds: int, seconds: float) -> dict[str, Any]:
    """All three comparisons of one bundle."""
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
        bare = BareLoop(bundle, threads)
        config = json.loads(server.ask(f"/v2/models/{model['name']}/config")[1])
        at_once = config["instance_group"][0]["count"]
        clients = max(4, 2 * size * at_once)
        full, alone = _in_turn(target, bare, size, at_once, clients, rounds, seconds)
        rate = 0.5 * median(full["server"])
        tails = [_tail(target, bare, size, rate, seconds, seed) for seed in range(TAILS)]
        statistics = json.loads(server.ask("/v2/models/stats")[1])["model_stats"][0]
    return {
        "bundle": bundle.name,
        "network": model["network"],
        "runs": model["runs"],
        "batch": model["batch"],
        "at_once": at_once,
        "clients": clients,
        "rounds": rounds,
        "seconds_a_block": seconds,
        "full": {
            **full,
            **ratio_with_interval(full["server"], full["bare"]),
            "of_one_on_all_cores": ratio_with_interval(full["server"], full["bare_one"]),
        },
        "alone": {**alone, **ratio_with_interval(alone["server_p50_ms"], alone["bare_p50_ms"])},
        "poisson": {
            "rate": rate,
            "runs": tails,
            **ratio_with_interval([t["p99_ms"] for t in tails], [t["ideal_p99_ms"] for t in tails]),
        },
        "batch_stats": [
            {"batch_size": b["batch_size"], "count": b["compute_infer"]["count"]}
            for b in statistics["batch_stats"]
        ],
    }


def _in_turn(
    target: Target,
    bare: BareLoop,
    size: int,
    at_once: int,
    clients: int,
    rounds: int,
    seconds: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    full: dict[str, list[float]] = {"server": [], "bare": [], "bare_one": [], "client_cpu_us": []}
    alone: dict[str, list[float]] = {"server_p50_ms": [], "bare_p50_ms": []}
    for number in range(rounds):
        plan = LoadPlan(seconds=seconds, seed=number)

        def server_side(plan: LoadPlan = plan) -> None:
            loaded = measure(target, plan, clients, None)
            _check(loaded)
            full["server"].append(loaded.requests_per_second)
            full["client_cpu_us"].append(loaded.cpu_us)
            single = measure(target, plan, 1, None)
            _check(single)
            alone["server_p50_ms"].append(median(single.latencies_ms(Outcome.OK)))

        def bare_side() -> None:
            one = bare.throughput(size, seconds)
            full["bare_one"].append(one)
            full["bare"].append(one if at_once == 1 else bare.throughput(size, seconds, at_once))
            alone["bare_p50_ms"].append(1e3 * median(bare.seconds_of_runs(1, seconds)))

        sides = [server_side, bare_side]
        for side in sides if number % 2 else reversed(sides):
            side()
        print(
            f"round {number}: {full['server'][-1]:.0f} of {full['bare'][-1]:.0f} images/s (one on "
            f"all cores {full['bare_one'][-1]:.0f}); alone "
            f"{alone['server_p50_ms'][-1]:.2f} against {alone['bare_p50_ms'][-1]:.2f} ms",
            flush=True,
        )
    return {**full, "clients": clients}, alone


def _tail(
    target: Target, bare: BareLoop, size: int, rate: float, seconds: float, seed: int
) -> dict[str, Any]:
    """One Poisson load and its ideal, on runs that were measured before and after it."""
    plan = LoadPlan(
        scenario="poisson", rates=(rate,), seconds=max(3 * seconds, 400 / rate), seed=seed
    )
    runs = {batch: bare.seconds_of_runs(batch, 0.3, least=20) for batch in range(1, size + 1)}
    loaded = measure(target, plan, 256, rate)
    _check(loaded)
    for batch, times in runs.items():
        times += bare.seconds_of_runs(batch, 0.3, least=20)
    arrivals = poisson_arrivals(rate, plan.warm_up + plan.seconds, plan.seed)
    ideal = np.array(ideal_latencies(arrivals.tolist(), runs, size, seed))
    counted = ideal[arrivals >= plan.warm_up] * 1e3
    got = np.array(loaded.latencies_ms(Outcome.OK))
    found = {
        "seed": seed,
        "n": len(got),
        "late": loaded.late,
        **{f"p{q}_ms": float(np.percentile(got, q)) for q in (50, 90, 99)},
        **{f"ideal_p{q}_ms": float(np.percentile(counted, q)) for q in (50, 90, 99)},
    }
    print(f"poisson {rate:.0f}/s: p99 {found['p99_ms']:.2f}, ideal {found['ideal_p99_ms']:.2f} ms")
    return found


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
    args = parser.parse_args(arguments)
    found = study(args.bundle, args.threads, args.rounds, args.seconds)
    key = f"{found['network']}, threads {args.threads or 'all'}"
    add_study("throughput", key, found)
    full, alone, tail = found["full"], found["alone"], found["poisson"]
    print(f"{key}, batch {found['batch']['size']}, {args.rounds} rounds")
    print(f"  full: {full['ratio']:.3f} [{full['low']:.3f}, {full['high']:.3f}] of the bare loop")
    print(
        f"  one client: {alone['ratio']:.2f} [{alone['low']:.2f}, {alone['high']:.2f}] x bare p50"
    )
    print(f"  Poisson, half load: p99 {tail['ratio']:.2f} [{tail['low']:.2f}, {tail['high']:.2f}] "
          "x the ideal batcher's")  # fmt: skip
