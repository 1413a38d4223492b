"""A server that is told to end, or is killed, while its clients go on."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.change_clients import (
    BROKEN,
    REFUSED,
    UNAVAILABLE,
    Clients,
    Sample,
    count_outcomes,
)
from benchmarks.serving.pair_of_bundles import Pair
from benchmarks.serving.reloads import MODEL, OPTIONS, OTHER, exchange
from benchmarks.serving.server_process import ServerProcess

TERM_CLIENTS, KILL_CLIENTS, PAUSE_SECONDS = 32, 8, 0.01
LAME_DUCK_SECONDS = 0.5
DRAIN_SECONDS = 10.0
EXIT_BOUND = DRAIN_SECONDS + 7.0
"""Seconds from SIGTERM to the exit: draining, flushing, and the interpreter's end."""
EDGE_SECONDS = 0.05
"""About the lame duck's end it is open which side a request is on."""
AFTERWARDS_SECONDS = 0.2
CLEAN = {"A", "B", UNAVAILABLE, REFUSED}


async def study_terms(pair: Pair, scratch: Path, seed: int, count: int) -> Any:
    """SIGTERM under load; every other time with a lame duck's half second."""
    pair.copy("A", scratch / "served" / MODEL)
    rows = [await _term(pair, scratch, seed + number, number % 2 == 1) for number in range(count)]
    only_right = all(row[part].keys() <= {"A"} for row in rows for part in ("before", "lame_duck"))
    ended = all(row["exit_code"] == 0 and not row["ready_while_leaving"] for row in rows)
    total = {name: _sum(row[name] for row in rows) for name in ("before", "lame_duck", "after")}
    return {
        "n": count,
        "outcomes": _sum(total.values()),
        "sent_before": total["before"],
        "sent_in_lame_duck": total["lame_duck"],
        "sent_after": total["after"],
        "ready_while_leaving": sum(row["ready_while_leaving"] for row in rows),
        "exit_codes": sorted({row["exit_code"] for row in rows}),
        "exit_bound": EXIT_BOUND,
        "exit_seconds": _spread([row["exit_seconds"] for row in rows]),
        "words": _sum(row["words"] for row in rows),
        "as_it_should": only_right and ended and total["after"].keys() <= CLEAN | {BROKEN},
        "rows": rows,
    }


async def _term(pair: Pair, scratch: Path, seed: int, lame: bool) -> dict[str, Any]:
    lame_duck = LAME_DUCK_SECONDS if lame else 0.0
    options = (*OPTIONS, "--drain-seconds", f"{DRAIN_SECONDS:g}",
               "--lame-duck-seconds", f"{lame_duck:g}")  # fmt: skip
    with ServerProcess(scratch / "served", scratch / "log", *options) as server:
        await asyncio.to_thread(server.wait_ready)
        async with Clients(server.url, MODEL, pair.known, TERM_CLIENTS, seed) as clients:
            await asyncio.sleep(random.Random(seed).uniform(0.3, 0.8))
            told = time.monotonic()
            server.signal(signal.SIGTERM)
            ready = False
            if lame_duck:
                await asyncio.sleep(lame_duck / 2)
                status, _ = await asyncio.to_thread(server.ask, "/v2/health/ready")
                ready = status == 200
            code = await asyncio.to_thread(server.wait, EXIT_BOUND)
            exited = time.monotonic() - told
            await asyncio.sleep(AFTERWARDS_SECONDS)
    duck = told + lame_duck - EDGE_SECONDS
    parts: dict[str, list[Sample]] = {"before": [], "lame_duck": [], "after": []}
    for sample in clients.samples:
        part = "before" if sample.sent < told else "lame_duck" if sample.sent < duck else "after"
        parts[part].append(sample)
    return {
        **{name: count_outcomes(samples) for name, samples in parts.items()},
        "on_their_way": sum(s.sent < told < s.done for s in clients.samples),
        "ready_while_leaving": ready,
        "exit_code": code,
        "exit_seconds": round(exited, 3),
        "words": dict(clients.words),
    }


async def study_kills(pair: Pair, scratch: Path, seed: int, count: int) -> Any:
    """SIGKILL under load, every other time in the middle of a reload, and a new start."""
    served, draw = scratch / "served", random.Random(seed)
    place, spare = served / MODEL, served / ".spare"
    pair.copy("A", place)
    pair.copy("B", spare)
    label, stale = "A", 0
    kills, ready_seconds = list[float](), list[float]()
    server = ServerProcess(served, scratch / "log", *OPTIONS)
    try:
        await asyncio.to_thread(server.wait_ready)
        again = (*OPTIONS, "--http-port", str(server.ports["http"]))
        async with Clients(
            server.url, MODEL, pair.known, KILL_CLIENTS, seed, PAUSE_SECONDS
        ) as clients:
            for number in range(count):
                await asyncio.sleep(draw.uniform(0.3, 0.8))
                if number % 2:
                    label = OTHER[label]
                    exchange(place, spare)
                    server.signal(signal.SIGHUP)
                    await asyncio.sleep(draw.uniform(0.0, 0.6))
                kills.append(time.monotonic())
                server.signal(signal.SIGKILL)
                await asyncio.to_thread(server.wait, 10.0)
                server = ServerProcess(served, scratch / "log", *again)
                ready_seconds.append(await asyncio.to_thread(server.wait_ready))
                since = time.monotonic()
                await asyncio.sleep(AFTERWARDS_SECONDS)
                stale += sum(
                    s.outcome != label for s in clients.samples if s.sent > since
                )  # fmt: skip
        code = await asyncio.to_thread(server.stop)
    finally:
        server.__exit__(None, None, None)
    outcomes, elsewhere = count_outcomes(clients.samples), _broken_elsewhere(clients.samples, kills)
    clean = outcomes.keys() <= CLEAN | {BROKEN} and not elsewhere
    return {
        "n": count,
        "requests": len(clients.samples),
        "outcomes": outcomes,
        "other_answers_than_that_of_the_bundle_on_disk": stale,
        "broken_without_a_kill": elsewhere,
        "ready_seconds": _spread(ready_seconds),
        "words": dict(clients.words),
        "exit_code": code,
        "as_it_should": clean and stale == 0 and code == 0,
    }


def _broken_elsewhere(samples: Sequence[Sample], kills: Sequence[float]) -> int:
    """Connections that broke while no kill came between a request and its answer."""
    return sum(
        s.outcome == BROKEN and not any(s.sent - EDGE_SECONDS < k < s.done for k in kills)
        for s in samples
    )


def _sum(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = {"median": float(np.median(values)), "least": min(values), "most": max(values)}
    return {name: round(value, 3) for name, value in found.items()}
