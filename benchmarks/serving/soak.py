"""An hour of moderate load: is every answer right, is any lost, does memory stay flat?

    python -m benchmarks.serving soak --bundle BUNDLE
    python -m benchmarks.serving soak --bundle BUNDLE --seconds 60 --record FILE     # a rehearsal

Sound requests of many forms come on a Poisson schedule with hostile ones among them. Each answer is
held against onnxruntime run alone beforehand. The record is written every two minutes, so that a
run that is cut off leaves a true one of as many seconds.
"""

import argparse
import asyncio
import signal
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from benchmarks.serving.grpc_asking import GrpcAsking
from benchmarks.serving.hostile_requests import make_hostile
from benchmarks.serving.image_messages import make_pictures
from benchmarks.serving.known_answers import compute_known, draw_images
from benchmarks.serving.server_process import ServerProcess
from benchmarks.serving.soak_load import PATIENCE_SECONDS, SoakLoad
from benchmarks.serving.soak_record import Soak, account, describe_soak, soak_lines, write_record
from benchmarks.serving.study_records import write_markdown
from polarprune.manifest import read_manifest
from polarprune_deploy.load.schedule import poisson_arrivals

RECORD = Path(__file__).parents[1] / "results" / "serving" / "soak.json"
SIZES = (1, 2, 3, 4, 5, 6, 7, 8)
CASES_EACH = 8
PICTURES = 16
SAMPLE_SECONDS = 10.0
CHECKPOINT_SECONDS = 120.0
SETTLE_SECONDS = 1.0
"""For the server to notice who has left."""
MODEL = "soaked"


def main(words: list[str]) -> None:
    """Load, record, print."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second")
    parser.add_argument("--warm-up", type=float, default=300.0, help="before memory is judged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-grpc", action="store_true")
    parser.add_argument("--no-images", action="store_true")
    parser.add_argument("--record", type=Path, default=RECORD)
    asyncio.run(_soak(parser.parse_args(words)))


async def _soak(options: argparse.Namespace) -> None:
    sizes = [size for size in SIZES for _ in range(CASES_EACH)]
    bundle, seed = options.bundle, options.seed
    known = compute_known(bundle, draw_images(read_manifest(bundle), sizes, seed))
    pictures = [] if options.no_images else make_pictures(bundle, PICTURES, seed)
    hostile = make_hostile(known, MODEL, seed, pictures)
    server_options = ["--threads", "1", *(["--grpc-port", "-1"] if options.no_grpc else [])]
    with tempfile.TemporaryDirectory() as scratch:
        folder, log = Path(scratch) / "served", Path(scratch) / "log"
        folder.mkdir()
        (folder / MODEL).symlink_to(bundle.resolve())
        with ServerProcess(folder, log, *server_options) as server:
            server.wait_ready()
            grpc = None
            if not options.no_grpc:
                grpc = GrpcAsking(server.ports["grpc"], MODEL, known.input_name)
            load = SoakLoad(
                server.url, MODEL, known, hostile, seed, grpc=grpc, pictures=pictures
            )  # fmt: skip
            soak = Soak(options, server_options, load, known)
            try:
                await _run(soak, server)
            finally:
                soak.load.close()
                if grpc is not None:
                    await grpc.close()
            await asyncio.sleep(SETTLE_SECONDS)
            soak.idle = server.state()
            soak.accounts = account(soak.load, server, MODEL)
            soak.exit_code = server.stop()
            for event in server.events():
                level = event.get("level", event["message"])
                soak.log_levels[level] = soak.log_levels.get(level, 0) + 1
    document = describe_soak(soak)
    write_record(options.record, document)
    lines = soak_lines(document)
    write_markdown(options.record.with_suffix(".md"), lines)
    print("\n".join(lines))


async def _run(soak: Soak, server: ServerProcess) -> None:
    """The load, with samples and checkpoints beside it.

    Ends early when told to, when the server does, and at a mistake of its own, which is raised.
    """
    options, loop = soak.options, asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    start = loop.time()
    under_way: set[asyncio.Task[None]] = set()
    mistakes: list[BaseException] = []

    def finished(task: asyncio.Task[None]) -> None:
        under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            mistakes.append(error)
            stop.set()

    def begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(finished)
        return task

    beside = [begin(_sample(soak, server, start)), begin(_checkpoint(soak))]
    for arrival in poisson_arrivals(options.rate, options.seconds, options.seed):
        due = start + float(arrival)
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        if stop.is_set() or server.process.poll() is not None:
            break
        under_way.add(begin(soak.load.make_request(due, loop.time)))
        soak.seconds = loop.time() - start
    if under_way:
        await asyncio.wait(under_way, timeout=PATIENCE_SECONDS + 5)
    soak.memory.append((loop.time() - start, server.state()))
    for task in beside:
        task.cancel()
    if mistakes:
        raise mistakes[0]


async def _sample(soak: Soak, server: ServerProcess, start: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        soak.memory.append((loop.time() - start, server.state()))
        await asyncio.sleep(SAMPLE_SECONDS - (loop.time() - start) % SAMPLE_SECONDS)


async def _checkpoint(soak: Soak) -> None:
    while True:
        await asyncio.sleep(CHECKPOINT_SECONDS)
        await asyncio.to_thread(write_record, soak.options.record, describe_soak(soak))
