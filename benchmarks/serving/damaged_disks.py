"""A damaged bundle, and a full disk, under load: the old one goes on, and the index says why."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.serving.change_clients import Clients, Sample, count_outcomes, wait_until
from benchmarks.serving.damages import MANIFEST, MODEL_FILE, SAMPLES, Damage, all_damages, restore
from benchmarks.serving.pair_of_bundles import Pair
from benchmarks.serving.reloads import MODEL, OPTIONS
from benchmarks.serving.server_process import ServerProcess

CLIENTS, PAUSE_SECONDS = 4, 0.01
LONGEST_WAIT = 30.0
WATCH_SECONDS = 0.5
AGAIN_SECONDS = 0.1
NO_PRIVILEGES = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
"""Else root may read what nobody may."""
BLOCK = 4096
TMPFS, LIMIT = "full tmpfs", "limit on the copy's file sizes"


async def study_damages(pair: Pair, scratch: Path, seed: int) -> Any:
    """One damage after the other, each made good before the next."""
    served = scratch / "served"
    pair.copy("A", served / MODEL)
    under = NO_PRIVILEGES if os.geteuid() == 0 else ()
    rows = []
    with ServerProcess(served, scratch / "log", *OPTIONS, under=under) as server:
        await asyncio.to_thread(server.wait_ready)
        async with Clients(server.url, MODEL, pair.known, CLIENTS, seed, PAUSE_SECONDS) as clients:
            for damage in all_damages():
                rows.append(await _suffer(damage, served / MODEL, pair, server, clients))
                if damage.label != "A":
                    await _heal(lambda: restore(served / MODEL, pair), "A", server, clients)
        code = await asyncio.to_thread(server.stop)
    return _told(rows, clients, code)


def _told(rows: list[dict[str, Any]], clients: Clients, code: int) -> dict[str, Any]:
    return {
        "n": len(rows),
        "requests": len(clients.samples),
        "outcomes": count_outcomes(clients.samples),
        "as_they_should": sum(row["as_it_should"] for row in rows),
        "as_it_should": code == 0 and all(row["as_it_should"] for row in rows),
        "words": dict(clients.words),
        "exit_code": code,
        "rows": rows,
    }


async def _suffer(
    damage: Damage, folder: Path, pair: Pair, server: ServerProcess, clients: Clients
) -> dict[str, Any]:
    """Damage, watch, heal, watch."""
    first, lines = len(clients.samples), len(_complaints(server))

    def noticed_now(index: list[dict[str, str]]) -> bool:
        match damage.told:
            case "index":
                return _kept(index)
            case "log":
                return len(_complaints(server)) > lines
            case _:
                return not index

    damage.apply(folder, pair)
    server.signal(signal.SIGHUP)
    noticed = await _until(server, noticed_now)
    index, meanwhile = await _watch(server, clients)

    def heal() -> None:
        if damage.heal is None:
            restore(folder, pair)
        else:
            damage.heal(folder)

    healed = await _heal(heal, damage.label, server, clients)
    wanted = {"404"} if damage.told == "gone" else {"A"}
    going_on = {s.outcome for s in meanwhile}
    reasons = [entry["reason"] for entry in index if entry["reason"]]
    if damage.told == "log":
        reasons = _complaints(server)[lines:]
    right = going_on == wanted and (damage.told == "gone" or reasons) and healed is not None
    return {
        "damage": damage.what,
        "as_it_should": bool(right and noticed is not None),
        "noticed_seconds": noticed,
        "index": [{key: e[key] for key in ("version", "state")} for e in index],
        "reason": [_without_folders(reason, folder) for reason in reasons],
        "meanwhile": count_outcomes(meanwhile),
        "healed_seconds": healed,
        "outcomes": count_outcomes(clients.samples[first:]),
    }


def _complaints(server: ServerProcess) -> list[str]:
    """Of whole folders, in the server's log."""
    return [e["message"] for e in server.events() if e["message"].startswith("the folder ")]


async def _watch(
    server: ServerProcess, clients: Clients
) -> tuple[list[dict[str, str]], list[Sample]]:
    """The index, and what came of the requests that were sent meanwhile."""
    since = time.monotonic()
    await asyncio.sleep(WATCH_SECONDS)
    return await asyncio.to_thread(server.index), _newest(clients.samples, since)


async def _heal(
    heal: Callable[[], None], label: str, server: ServerProcess, clients: Clients
) -> float | None:
    """Seconds until the right bundle alone is in the index and answers; None: never."""
    start = time.monotonic()
    await asyncio.to_thread(heal)
    server.signal(signal.SIGHUP)
    if await _until(server, lambda index: [e["state"] for e in index] == ["READY"]) is None:
        return None

    def answered() -> bool:
        return bool(_newest(clients.samples, start)) and clients.samples[-1].outcome == label

    try:
        await wait_until(answered, LONGEST_WAIT, f"answers of {label}")
    except TimeoutError:
        return None
    seconds = time.monotonic() - start
    _, later = await _watch(server, clients)
    return round(seconds, 3) if {s.outcome for s in later} == {label} else None


def _newest(samples: list[Sample], since: float) -> list[Sample]:
    return [s for s in samples[-2000:] if s.sent > since]


def _kept(index: list[dict[str, str]]) -> bool:
    """Whether one serves, and another does not."""
    return [entry["state"] for entry in index] == ["READY", "UNAVAILABLE"]


async def _until(
    server: ServerProcess, condition: Callable[[list[dict[str, str]]], bool]
) -> float | None:
    """Seconds until the index is so; None: it does not become so. It is asked to look meanwhile."""
    start = time.monotonic()
    while not condition(await asyncio.to_thread(server.index)):
        if time.monotonic() - start > LONGEST_WAIT:
            return None
        await asyncio.sleep(AGAIN_SECONDS)
    return round(time.monotonic() - start, 3)


async def study_full_disk(pair: Pair, scratch: Path, seed: int) -> Any:
    """The disk is full while a new version is copied, and while files are copied over the old."""
    size = sum(path.stat().st_size for path in pair.folders["A"].iterdir())
    disk = scratch / "disk"
    disk.mkdir()
    with _small_disk(disk, 2 * size + 16 * BLOCK) as disk_kind:
        served, filler = disk / "served", disk / "filler"
        pair.copy("A", served / MODEL / "1")
        with ServerProcess(served, scratch / "log", *OPTIONS) as server:
            await asyncio.to_thread(server.wait_ready)
            async with Clients(
                server.url, MODEL, pair.known, CLIENTS, seed, PAUSE_SECONDS
            ) as clients:
                rows = [
                    await _copy_onto_full(
                        what, pair, label, served / MODEL / version, filler, server, clients, how
                    )
                    for what, label, version, how in (
                        ("a new version", "B", "2", disk_kind),
                        ("over the files of the one that serves", "A", "2", LIMIT),
                    )
                ]
            code = await asyncio.to_thread(server.stop)
    return _told(rows, clients, code)


async def _copy_onto_full(
    what: str, pair: Pair, label: str, target: Path, filler: Path, server: ServerProcess,
    clients: Clients, how: str,
) -> dict[str, Any]:  # fmt: skip
    first = len(clients.samples)
    old = clients.samples[-1].outcome if clients.samples else "A"
    code = await asyncio.to_thread(_copy_files, pair.folders[label], target, filler, how)
    server.signal(signal.SIGHUP)
    noticed = await _until(
        server, lambda index: [e["state"] for e in index] == ["READY", "UNAVAILABLE"]
    )
    index, meanwhile = await _watch(server, clients)

    def again() -> None:
        filler.unlink(missing_ok=True)
        if _copy_files(pair.folders[label], target, None, how):
            raise RuntimeError("there is room, and it cannot be copied")

    healed = await _heal(again, label, server, clients)
    reasons = [_without_folders(e["reason"], target) for e in index if e["reason"]]
    going_on = {s.outcome for s in meanwhile}
    return {
        "copied": what,
        "how": how,
        "copy_failed": code != 0,
        "as_it_should": bool(
            code and noticed is not None and going_on == {old} and reasons and healed is not None
        ),
        "noticed_seconds": noticed,
        "reason": reasons,
        "meanwhile": count_outcomes(meanwhile),
        "healed_seconds": healed,
        "outcomes": count_outcomes(clients.samples[first:]),
    }


def _copy_files(source: Path, target: Path, filler: Path | None, how: str) -> int:
    """Copy with cp, the manifest first, as bad luck may have it; its exit code.

    Args:
        filler: takes all room but for half a model; None leaves what there is.
    """
    target.mkdir(exist_ok=True)
    limit: list[str] = []
    half = (source / MODEL_FILE).stat().st_size // 2
    if filler is not None and how == TMPFS:
        room = os.statvfs(filler.parent)
        filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - half)))
    elif filler is not None:
        limit = ["prlimit", f"--fsize={half}"]
    files = [str(source / name) for name in (MANIFEST, MODEL_FILE, SAMPLES)]
    done = subprocess.run(
        [*limit, "cp", *files, str(target)], capture_output=True, check=False, timeout=60
    )
    return done.returncode


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[str]:
    """A disk of so many bytes where mounting is allowed; else the copies' files are limited."""
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    try:
        yield TMPFS if mounted else LIMIT
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _without_folders(reason: str, folder: Path) -> str:
    return reason.replace(str(folder.parent), "...")
