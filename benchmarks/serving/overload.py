"""Four times as many requests as the server can answer, for minutes; then none too many.

    python -m benchmarks.serving overload --bundle resnet50-bundle

Capacity is measured before and after, by a closed loop that keeps batches full. The overload is
Poisson, latency counts from when a request was due. Reported: right answers a second against
capacity, how soon the others were refused, and how soon a single client has its usual latency again
when the overload ends.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.serving.server_process import ServerProcess
from benchmarks.serving.study_records import add_study
from polarprune_deploy.load.endpoint import parse_endpoint
from polarprune_deploy.load.load_plan import LoadPlan
from polarprune_deploy.load.measuring import measure
from polarprune_deploy.load.model_metadata import read_model
from polarprune_deploy.load.samples import Outcome
from polarprune_deploy.load.targets import Target, look_at

CAPACITY_SECONDS = 20.0
RECOVERY_SECONDS = 10.0
CONNECTIONS = 256


def main(arguments: list[str]) -> None:
    """Measure, and add to the record."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving overload")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--times", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=300.0)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--backend", "onnxruntime", "--grpc-port", "-1"]
        with ServerProcess(args.bundle, Path(folder) / "log", *options) as server:
            server.wait_ready()
            endpoint = parse_endpoint(server.url)
            target = look_at(endpoint, read_model(endpoint), batch=None)
            found = study(server, target, args.times, args.seconds)
            model = json.loads(server.ask("/status")[1])["models"][0]
            found["exit_code"] = server.stop()
    found |= {"network": model["network"], "batch": model["batch"], "runs": model["runs"]}
    add_study("overload", model["network"], found)
    print(
        f"{model['network']}: capacity {found['capacity']:.1f} images/s; under "
        f"{args.times:g} times that for {args.seconds:g} s: {found['goodput']:.1f}/s right answers "
        f"({found['goodput_share']:.3f} of capacity), {found['refused']:,} refused, p50/p99/max "
        f"{found['refused_ms']['p50']:.1f}/{found['refused_ms']['p99']:.1f}/"
        f"{found['refused_ms']['max']:.1f} ms after sending; wrong {found['wrong']}, failed "
        f"{found['failed']}; usual latency again after {found['recovery']['seconds']:.2f} s"
    )


def study(server: ServerProcess, target: Target, times: float, seconds: float) -> dict[str, Any]:
    """Capacity, alone, overload, recovery, capacity."""
    status = json.loads(server.ask("/status")[1])["models"][0]
    clients = max(4, 2 * status["batch"]["size"])
    full = LoadPlan(seconds=CAPACITY_SECONDS)
    before = measure(target, full, clients, None).requests_per_second
    alone = median(measure(target, LoadPlan(seconds=5.0), 1, None).latencies_ms(Outcome.OK))
    rate = times * before
    plan = LoadPlan(scenario="poisson", rates=(rate,), seconds=seconds)
    memory = server.state().rss_kb
    load = measure(target, plan, CONNECTIONS, rate)
    recovery = _recovery(target, alone)
    after = measure(target, full, clients, None).requests_per_second
    capacity = (before + after) / 2
    counted, outcomes, samples = load.counted, load.samples.outcomes, load.samples
    refused = counted & (outcomes == Outcome.REJECTED)
    waits = (samples.done - samples.sent)[refused] * 1e3
    answered = np.array(load.latencies_ms(Outcome.OK))
    return {
        "times": times, "seconds": seconds, "rate": rate, "clients_for_capacity": clients,
        "capacity_before": before, "capacity_after": after, "capacity": capacity,
        "goodput": load.requests_per_second,
        "goodput_share": load.requests_per_second / capacity,
        "n": int(counted.sum()), "answered": len(answered), "refused": int(refused.sum()),
        "answered_ms": _percentiles(answered), "refused_ms": _percentiles(waits),
        "refused_within_50_ms": float((waits <= 50).mean()) if len(waits) else None,
        "failed": load.count(Outcome.FAILED), "failures": dict(samples.reasons),
        "wrong": load.wrong, "late_sends": load.late, "client_cpu_us": load.cpu_us,
        "rss_kb": {"before": memory, "after": server.state().rss_kb},
        "recovery": recovery,
    }  # fmt: skip


def _recovery(target: Target, alone: float) -> dict[str, Any]:
    """A single client, from the moment the overload has its last answer."""
    start = time.monotonic()
    load = measure(target, LoadPlan(seconds=RECOVERY_SECONDS), 1, None)
    samples = load.samples
    times = (samples.done - samples.due) * 1e3
    usual = np.flatnonzero(times <= 1.5 * alone)
    first = samples.done[usual[0]] - samples.due[0] if len(usual) else float("nan")
    return {
        "usual_ms": alone, "seconds": float(first), "first_ms": float(times[0]),
        "median_ms": float(np.median(times)), "refused": load.count(Outcome.REJECTED),
        "measured_for": time.monotonic() - start,
    }  # fmt: skip


def _percentiles(times: np.ndarray) -> dict[str, float]:
    if not len(times):
        return {}
    return {
        **{f"p{q}": float(np.percentile(times, q)) for q in (50, 90, 99)},
        "max": float(times.max()),
    }
