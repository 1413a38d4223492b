"""Fuzzed bodies against a real server: every answer judged, good requests among them.

    python -m benchmarks.hostile_input fuzz --bodies 100000 --seed 0      # five minutes
    python -m benchmarks.hostile_input fuzz --bodies 500 --record ""      # seconds, not recorded

Ends with 1 where an answer was not as it had to be; the record holds each of these requests. The
bodies depend on the seed and the number of workers, not on how fast the server is.
"""

import argparse
import base64
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.hostile_input.mutations import SHARES, draw
from benchmarks.hostile_input.record import RECORD, add_case
from benchmarks.hostile_input.requests_sent import Sent
from benchmarks.hostile_input.verdicts import UNEXPECTED, Verdict, give_verdict
from tests.deploy.serving.hostile_server import HostileServer
from tests.deploy.serving.raw_http import Answer, Hung, RawConnection
from tests.deploy.serving.served_bundle import make_folder

PIPELINED_SHARE, MOST_PIPELINED = 0.1, 5
PIPELINABLE = ("good", "json", "bytes")
"""Kinds after which a connection goes on."""
IMPATIENCE = 0.3
"""Seconds for an answer to what may be no whole request; then the server is told that it ends."""
MOST_KEPT, MOST_BYTES = 50, 4096
"""Unexpected answers in the record, and bytes of each request."""
LOOK_SECONDS = 1.0


@dataclass
class Tally:
    """What the workers found; they share it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    done: int = 0
    connections: int = 0
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    good_seconds: list[float] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)

    def add(self, sent: Sent, answer: Answer | None, verdict: Verdict, seconds: float) -> None:
        """One more."""
        with self.lock:
            self.done += 1
            self.verdicts[sent.kind, verdict.word] += 1
            self.statuses["none" if answer is None else str(answer.status)] += 1
            if sent.kind == "good":
                self.good_seconds.append(seconds)
            if verdict.word == UNEXPECTED and len(self.kept) < MOST_KEPT:
                self.kept.append(_kept(sent, answer, verdict))


def _kept(sent: Sent, answer: Answer | None, verdict: Verdict) -> dict[str, Any]:
    def short(content: bytes) -> str:
        return base64.b64encode(content[:MOST_BYTES]).decode()

    whole = sent.encode()
    return {
        "kind": sent.kind,
        "why": verdict.why,
        "request_bytes": len(whole),
        "request": short(whole),
        "status": None if answer is None else answer.status,
        "answer": None if answer is None else short(answer.body),
    }


class Worker:
    """One client with its own requests and its own connection."""

    def __init__(self, server: HostileServer, tally: Tally, seed: int, number: int) -> None:
        self._server, self._tally = server, tally
        self._random = Random(f"{seed}-{number}")
        self._connection: RawConnection | None = None

    def work(self, bodies: int) -> None:
        """Send so many."""
        while bodies > 0:
            sent = draw(self._random)
            if sent.alone:
                self._ask_alone(sent)
                bodies -= 1
                continue
            together = [sent]
            if sent.kind in PIPELINABLE and self._random.random() < PIPELINED_SHARE:
                more = (draw(self._random) for _ in range(self._random.randint(1, MOST_PIPELINED)))
                together += [other for other in more if other.kind in PIPELINABLE]
            self._ask(together)
            bodies -= len(together)
        if self._connection is not None:
            self._connection.socket.close()

    def _ask(self, together: list[Sent]) -> None:
        """One request, or several behind one another, on the connection that is held."""
        if self._connection is None:
            self._connection = self._connect()
        connection: RawConnection | None = self._connection
        start = time.monotonic()
        self._connection.send(b"".join(sent.encode() for sent in together))
        for sent in together:
            answer, why = None, "the connection had ended"
            if connection is not None:
                answer, why = _answer(connection, sent)
                if answer is None or answer.headers.get("connection") == "close":
                    connection.socket.close()
                    connection = None
            self._judge(sent, answer, why, time.monotonic() - start)
        self._connection = connection

    def _ask_alone(self, sent: Sent) -> None:
        """What may leave a connection in any state."""
        start = time.monotonic()
        with self._connect() as connection:
            connection.send(sent.encode())
            connection.socket.settimeout(IMPATIENCE)
            answer, why = _answer(connection, sent)
            connection.socket.settimeout(20)
            with suppress(OSError):  # closed already
                connection.socket.shutdown(1)
            if why == "hung":
                answer, why = _answer(connection, sent)
            self._judge(sent, answer, why, time.monotonic() - start)

    def _connect(self) -> RawConnection:
        with self._tally.lock:
            self._tally.connections += 1
        return self._server.connect()

    def _judge(self, sent: Sent, answer: Answer | None, why: str, seconds: float) -> None:
        verdict = give_verdict(sent, answer, self._server.reference.session)
        if (verdict.word == UNEXPECTED and answer is None) or why not in ("", "ended"):
            verdict = Verdict(UNEXPECTED, why)
        self._tally.add(sent, answer, verdict, seconds)


def _answer(connection: RawConnection, sent: Sent) -> tuple[Answer | None, str]:
    """An answer, or why there is none."""
    try:
        answer = connection.answer(sent.method.decode("latin-1"))
    except Hung:
        return None, "hung"
    except (ValueError, KeyError, OSError) as error:
        return None, f"no HTTP: {error}"[:200]
    return answer, "" if answer is not None else "ended"


def study(bodies: int, seed: int, workers: int) -> dict[str, Any]:
    """Send the bodies and tell what came of them."""
    with tempfile.TemporaryDirectory() as folder:
        server = HostileServer(make_folder(Path(folder) / "bundles"))
        try:
            server.wait_ready()
            found = _study(server, bodies, seed, workers)
        finally:
            code = server.stop()
    return found | {"exit_code": code}


def _study(server: HostileServer, bodies: int, seed: int, workers: int) -> dict[str, Any]:
    warm = Tally()
    Worker(server, warm, seed, -1).work(max(200, bodies // 50))
    tally, start = Tally(), time.monotonic()
    share = -(-bodies // workers)
    threads = [
        threading.Thread(target=Worker(server, tally, seed, number).work, args=(share,))
        for number in range(workers)
    ]
    memory = [(0, server.resident_bytes())]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(LOOK_SECONDS)
        if server.process.poll() is None:
            memory.append((tally.done, server.resident_bytes()))
    seconds = time.monotonic() - start
    kinds = sorted({kind for kind, _ in tally.verdicts})
    return {
        "bodies": tally.done,
        "seed": seed,
        "workers": workers,
        "shares": SHARES,
        "seconds": round(seconds, 1),
        "connections": tally.connections,
        "verdicts": {
            kind: {word: n for (k, word), n in sorted(tally.verdicts.items()) if k == kind}
            for kind in kinds
        },
        "statuses": dict(sorted(tally.statuses.items())),
        "unexpected": sum(n for (_, word), n in tally.verdicts.items() if word == UNEXPECTED),
        "unexpected_requests": tally.kept,
        "good_seconds": _quantiles(tally.good_seconds),
        "resident_bytes": _thinned(memory),
        "trouble_afterwards": _trouble(server),
        "server_failures": server.failures()[:20],
    }


def _trouble(server: HostileServer) -> str:
    """Why the server is not well, if it is not."""
    try:
        server.check_well()
    except AssertionError as error:
        return str(error)[:500]
    return ""


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{q}": round(float(np.percentile(values, q)), 5) for q in (50, 99, 100)}


def _thinned(memory: list[tuple[int, int]]) -> list[dict[str, int]]:
    step = max(1, len(memory) // 40)
    kept = [*memory[:-1:step], memory[-1]]
    return [{"bodies": bodies, "bytes": size} for bodies, size in kept]


def main(words: list[str]) -> int:
    """Study, record, print; 1 where an answer was not as it had to be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--record", default=str(RECORD), help="empty: none")
    options = parser.parse_args(words)
    found = study(options.bodies, options.seed, options.workers)
    if options.record:
        add_case("fuzz", found, Path(options.record))
    first, last = found["resident_bytes"][0]["bytes"], found["resident_bytes"][-1]["bytes"]
    print(f"{found['bodies']} bodies in {found['seconds']} s, {found['unexpected']} unexpected")
    print("statuses:", found["statuses"])
    for kind, verdicts in found["verdicts"].items():
        print(f"{kind:>14}", verdicts)
    print(
        f"good requests: {found['good_seconds']}; server memory {first >> 20} -> {last >> 20} MiB"
    )
    for each in found["unexpected_requests"][:10]:
        print(each["kind"], each["why"], each["status"], base64.b64decode(each["request"])[:300])
    failed = found["unexpected"] or found["trouble_afterwards"] or found["server_failures"]
    return 1 if failed or found["exit_code"] else 0
