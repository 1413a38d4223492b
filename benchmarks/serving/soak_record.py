"""What is written down of a soak, whole or cut off."""

import argparse
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.accounting import Line, read_counts, read_statistics
from benchmarks.serving.known_answers import TOLERANCE, Known
from benchmarks.serving.memory_trend import memory_trend
from benchmarks.serving.server_process import ProcessState, ServerProcess
from benchmarks.serving.soak_load import HOSTILE_SHARE, SoakLoad, Tally
from benchmarks.serving.study_records import machine


@dataclass
class Soak:
    """All that is known of a soak so far.

    Attributes:
        machine: what is tested, and where; told before the load.
        memory: seconds since the start and what /proc said then.
        seconds: of load, so far.
        accounts: what server and clients counted; empty before the end.
        idle: the server's state when all its clients had gone.
        exit_code: of the server; None before the end.
    """

    options: argparse.Namespace
    server_options: list[str]
    load: SoakLoad
    known: Known
    machine: dict[str, Any] = field(default_factory=machine)
    memory: list[tuple[float, ProcessState]] = field(default_factory=list)
    seconds: float = 0.0
    accounts: list[Line] = field(default_factory=list)
    exit_code: int | None = None
    idle: ProcessState | None = None
    log_levels: dict[str, int] = field(default_factory=dict)


def account(load: SoakLoad, server: ServerProcess, model: str) -> list[Line]:
    """The server's counts against the clients'.

    Who left while waiting may have been served or not, but must have been counted as one of both.
    """
    right = sum(tally.right for tally in load.good.values())
    images = sum(tally.images for tally in load.good.values())
    left, cut = load.counted["either"], load.counted["CANCELED"]
    refused = load.counted["OTHER"]
    most = max(len(case.images) for case in load.cases)
    places = {
        "metrics": read_counts(server, model),
        "metrics on their own port": read_counts(server, model, "metrics"),
        "statistics": read_statistics(server, model),
    }
    lines = []
    for place, found in places.items():
        lines += [
            Line(f"requests served, by {place}", right, right + left, found.success),
            Line(f"images computed, by {place}", images, images + left * most, found.images),
        ]
        if place == "statistics":
            failed = found.failures["all"]
        else:
            failed = sum(found.failures.values())
            lines += [
                Line(f"refused as bad, by {place}", refused, refused, found.failures["OTHER"]),
                Line(f"rejected, by {place}", 0, 0, found.failures["REJECTED"]),
                Line(f"failed in the engine, by {place}", 0, 0, found.failures["BACKEND"]),
            ]
        total = right + left + cut + refused
        lines.append(Line(f"all requests, by {place}", total, total, found.success + failed))
    return lines


def describe_soak(soak: Soak) -> dict[str, Any]:
    """The record."""
    load, options = soak.load, soak.options
    good, bad = load.good.values(), load.bad.values()
    sent = sum(tally.sent for tally in (*good, *bad))
    return {
        "what": "a server under moderate load: answers, losses, memory; client and server share "
        "one machine",
        "machine": soak.machine,
        "network": soak.known.manifest.name,
        "model_sha256": soak.known.manifest.files["model.onnx"].sha256,
        "server_options": soak.server_options,
        "seed": options.seed,
        "rate": options.rate,
        "hostile_share": HOSTILE_SHARE,
        "seconds_planned": options.seconds,
        "seconds": round(soak.seconds, 1),
        "complete": soak.exit_code is not None and soak.seconds > options.seconds - 5,
        "n": sent,
        "requests": len(soak.known.cases),
        "pairs_alike": soak.known.alike(),
        "tolerance_of_largest": TOLERANCE,
        "largest_deviation": load.largest_deviation,
        "right": sum(tally.right for tally in good),
        "images": sum(tally.images for tally in good),
        "hostile_handled": sum(tally.right for tally in bad),
        "wrong": sum(tally.wrong for tally in (*good, *bad)),
        "lost": sum(tally.lost for tally in (*good, *bad)),
        "unexpected_statuses": sum(sum(tally.statuses.values()) for tally in (*good, *bad)),
        "waiting": sum(map(_open, (*good, *bad))),
        "sound": {kind: tally.as_json() for kind, tally in sorted(load.good.items())},
        "hostile": {kind: tally.as_json() for kind, tally in sorted(load.bad.items())},
        "problems": load.problems,
        "latency_ms": _latencies(load.latencies),
        "connections_opened": load.connections,
        "accounts": [line.as_json() for line in soak.accounts],
        "server": _process(soak),
        "server_log_lines": soak.log_levels,
        "server_exit_code": soak.exit_code,
    }


def write_record(path: Path, document: dict[str, Any]) -> None:
    """With the trend of memory after the warm-up; whole or not at all."""
    server = document["server"]
    taken = [row[:2] for row in server["samples"] if row[0] >= server["warm_up_seconds"]]
    seconds, rss = np.array(taken, np.float64).reshape(-1, 2).T
    trend = memory_trend(seconds, rss)
    server["trend_kb_per_hour"] = None if trend is None else dataclasses.asdict(trend)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    unfinished.replace(path)


def soak_lines(record: dict[str, Any]) -> list[str]:
    """The tables for people, in Markdown."""
    latency, server = record["latency_ms"], record["server"]
    trend = server["trend_kb_per_hour"]
    grows = "" if trend is None else (
        f"{trend['slope']:,.0f} kB an hour [{trend['low']:,.0f}, {trend['high']:,.0f}] after "
        f"{server['warm_up_seconds']:.0f} s of warm-up"
    )  # fmt: skip
    wrong_sums = [line["what"] for line in record["accounts"] if not line["adds_up"]]
    sums = f"{len(record['accounts'])} sums of server and clients"
    lines = [
        f"{record['seconds']:,.0f} s, {record['n']:,} requests ({record['rate']:g} a second): "
        f"{record['right']:,} right answers to {record['images']:,} images, {record['wrong']} "
        f"wrong, {record['lost']} lost, {record['unexpected_statuses']} unexpected statuses, "
        f"{record['hostile_handled']:,} hostile requests as due.",
        f"Largest deviation {record['largest_deviation']:.2g} of the largest value (allowed "
        f"{record['tolerance_of_largest']:g}). Latency p50 {latency.get('p50')} ms, p99 "
        f"{latency.get('p99')} ms, client, server and other work on one machine.",
        f"Resident memory: {grows}.",
        f"{sums}: {'all add up' if not wrong_sums else 'NOT ' + ', '.join(wrong_sums)}. "
        f"Exit code {record['server_exit_code']}.",
        "",
        "| server | resident kB | threads | descriptors |",
        "|---|---|---|---|",
    ]
    for when in ("first", "after_warm_up", "last", "without_clients"):
        state = server[when] or {}
        cells = [f"{state.get(key, '-')}" for key in ("rss_kb", "threads", "descriptors")]
        lines.append(f"| {' | '.join([when.replace('_', ' '), *cells])} |")
    for kind in ("sound", "hostile"):
        lines += [
            "",
            f"| {kind} | sent | as due | wrong | lost | other statuses |",
            "|---" * 6 + "|",
        ]
        for name, row in record[kind].items():
            others = ", ".join(f"{key}: {count}" for key, count in row["statuses"].items())
            counts = [f"{row[key]}" for key in ("sent", "right", "wrong", "lost")]
            lines.append(f"| {' | '.join([name, *counts, others or 'none'])} |")
    return lines


def _open(tally: Tally) -> int:
    """Requests without an outcome: those under way when the record was written."""
    known = tally.right + tally.wrong + tally.lost + sum(tally.statuses.values())
    return tally.sent - known


def _latencies(seconds: list[float]) -> dict[str, float | int]:
    if not seconds:
        return {"n": 0}
    found = np.quantile(np.array(seconds) * 1e3, [0.5, 0.9, 0.99, 1.0])
    names = ("p50", "p90", "p99", "max")
    values = {name: round(float(v), 3) for name, v in zip(names, found, strict=True)}
    return {"n": len(seconds), **values}


def _process(soak: Soak) -> dict[str, Any]:
    """Memory, threads and descriptors."""
    taken = [entry for entry in soak.memory if entry[0] >= soak.options.warm_up]
    return {
        "trend_kb_per_hour": None,
        "warm_up_seconds": soak.options.warm_up,
        "first": None if not soak.memory else vars(soak.memory[0][1]),
        "after_warm_up": None if not taken else vars(taken[0][1]),
        "last": None if not soak.memory else vars(soak.memory[-1][1]),
        "without_clients": None if soak.idle is None else vars(soak.idle),
        "samples": [
            [round(when), state.rss_kb, state.threads, state.descriptors]
            for when, state in soak.memory
        ],
        "sample_columns": ["second", "rss_kb", "threads", "descriptors"],
    }
