"""Bundles that take each other's place under load, and versions that come and go."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.accounting import read_counts
from benchmarks.serving.change_clients import (
    Clients,
    Sample,
    count_outcomes,
    latencies,
    wait_until,
)
from benchmarks.serving.pair_of_bundles import Pair
from benchmarks.serving.server_process import ServerProcess

CLIENTS, PAUSE_SECONDS = 8, 0.02
LONGEST_RELOAD = 60.0
SETTLED_SECONDS = 0.25
MODEL = "changing"
OPTIONS = ("--threads", "1", "--grpc-port", "-1")
OTHER = {"A": "B", "B": "A"}


@dataclass(frozen=True)
class Change:
    """One replacement, as seen from outside; times of `time.monotonic`.

    Attributes:
        to: the label that serves behind it.
        begun: when the folder was changed.
        served: when the server said that it serves.
        known: when the study had read that; every request from then on is the new one's.
    """

    to: str
    begun: float
    served: float
    known: float


async def study_reloads(pair: Pair, scratch: Path, seed: int, count: int, until: float) -> Any:
    """Let A and B take each other's place, by renames alone, with a SIGHUP behind each.

    Args:
        until: of `time.monotonic`; no reload is begun later.
    """
    served = scratch / "served"
    place, spare = served / MODEL, served / ".spare"
    pair.copy("A", place)
    pair.copy("B", spare)
    label, changes = "A", list[Change]()
    with ServerProcess(served, scratch / "log", *OPTIONS) as server:
        await asyncio.to_thread(server.wait_ready)
        async with Clients(server.url, MODEL, pair.known, CLIENTS, seed, PAUSE_SECONDS) as clients:
            await asyncio.sleep(SETTLED_SECONDS)
            while len(changes) < count and time.monotonic() < until:
                label = OTHER[label]
                begun, now = time.monotonic(), time.time()
                exchange(place, spare)
                server.signal(signal.SIGHUP)
                told = await _next_serving(server)
                changes.append(Change(label, begun, begun + told - now, time.monotonic()))
                await asyncio.sleep(SETTLED_SECONDS)
        success = read_counts(server, MODEL).success
        messages = Counter(event["message"] for event in server.events())
        code = await asyncio.to_thread(server.stop)
    found = _describe(changes, clients.samples, clients.words)
    return {
        **found,
        "counted_by_server": success,
        "server_log": dict(messages),
        "exit_code": code,
        "as_it_should": _sound(found, success, code),
    }


async def study_versions(pair: Pair, scratch: Path, seed: int, count: int, back: int) -> Any:
    """New version numbers appear, odd ones A and even ones B; then the newest ones go again.

    No signal: the server finds them by itself.
    """
    served = scratch / "served"
    pair.copy("A", served / MODEL / "1")
    changes, newest = list[Change](), 1
    options = (*OPTIONS, "--poll-seconds", "0.2")
    with ServerProcess(served, scratch / "log", *options) as server:
        await asyncio.to_thread(server.wait_ready)
        async with Clients(server.url, MODEL, pair.known, CLIENTS, seed, PAUSE_SECONDS) as clients:
            await asyncio.sleep(SETTLED_SECONDS)
            for up in (*[True] * count, *[False] * back):
                if up:
                    pair.copy(_label(newest + 1), served / MODEL / ".coming")
                begun, now = time.monotonic(), time.time()
                if up:
                    newest += 1
                    (served / MODEL / ".coming").rename(served / MODEL / str(newest))
                else:
                    (served / MODEL / str(newest)).rename(served / MODEL / f".gone-{newest}")
                    newest -= 1
                told = await _next_serving(server, str(newest))
                changes.append(Change(_label(newest), begun, begun + told - now, time.monotonic()))
                await asyncio.sleep(SETTLED_SECONDS)
        success = read_counts(server, MODEL).success
        code = await asyncio.to_thread(server.stop)
    mixed = sum(s.outcome != _label(int(s.version)) for s in clients.samples if s.version)
    found = _describe(changes, clients.samples, clients.words)
    return {
        **found,
        "versions_up": count,
        "versions_back": back,
        "version_and_weights_differ": mixed,
        "counted_by_server": success,
        "exit_code": code,
        "as_it_should": _sound(found, success, code) and mixed == 0,
    }


def _sound(found: dict[str, Any], success: int, code: int) -> bool:
    """Whether every request got a right answer, of the right bundle, and was counted so."""
    answered = found["outcomes"].keys() <= OTHER.keys() and success == found["requests"]
    return bool(answered and found["old_answers_after_the_change"] == 0 and code == 0)


def _label(version: int) -> str:
    return "A" if version % 2 else "B"


def exchange(place: Path, spare: Path) -> None:
    """Let two folders take each other's place; for a moment there is none."""
    aside = spare.with_name(".aside")
    os.rename(place, aside)
    os.rename(spare, place)
    os.rename(aside, spare)


async def _next_serving(server: ServerProcess, version: str = "1") -> float:
    """When the server said that it serves once more; seconds of `time.time`."""
    before = len(server.events("serving"))

    def told() -> bool:
        return any(e["version"] == version for e in server.events("serving")[before:])

    await wait_until(told, LONGEST_RELOAD, "the new bundle is served")
    event = next(e for e in server.events("serving")[before:] if e["version"] == version)
    return datetime.fromisoformat(event["time"]).timestamp()


def _describe(
    changes: Sequence[Change], samples: Sequence[Sample], words: Counter[str]
) -> dict[str, Any]:
    """Counts, and latencies during the changes against those outside of them."""
    during = np.zeros(len(samples), bool)
    sent = np.array([s.sent for s in samples])
    done = np.array([s.done for s in samples])
    stale = 0
    ends = [change.begun for change in changes[1:]] + [float("inf")]
    for change, end in zip(changes, ends, strict=True):
        during |= (sent < change.served) & (done > change.begun)
        behind = (sent > change.known) & (done < end)
        stale += sum(
            s.outcome != change.to for s, b in zip(samples, behind, strict=True) if b
        )  # fmt: skip
    seconds = [change.served - change.begun for change in changes]
    pairs = list(zip(samples, during, strict=True))
    return {
        "n": len(changes),
        "requests": len(samples),
        "outcomes": count_outcomes(samples),
        "words": dict(words),
        "old_answers_after_the_change": stale,
        "seconds_to_serve": {
            "median": round(float(np.median(seconds)), 3),
            "least": round(min(seconds), 3),
            "most": round(max(seconds), 3),
        },
        "latency_ms_during": latencies([s for s, d in pairs if d]),
        "latency_ms_outside": latencies([s for s, d in pairs if not d]),
        "seconds": [round(s, 3) for s in seconds],
    }
