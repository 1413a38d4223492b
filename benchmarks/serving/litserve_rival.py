"""The same network behind LitServe and behind us, under the same clients, in one run.

    python -m benchmarks.serving litserve --bundle BUNDLE --python VENV/bin/python

VENV holds litserve, onnxruntime and numpy (`litserve_app` says what is served). The servers are up
all the time and loaded in turn, so many clients each with one request of one image on its way.
Whoever is not loaded is stopped (SIGSTOP): idle workers of LitServe look at their queue all the
time, and would take the cores from the others. LitServe runs twice: with one worker on all cores,
and with a worker of one thread a core; the better of them in each row is what ours is held against.
Its window is ours. The bare session, in a loop beside them, is the bound of every server and every
client. Each server gets the request form that is cheapest for it: ours raw bytes, LitServe base64
in JSON, the form it reads fastest; ours is also measured with numbers in JSON.
"""

import argparse
import base64
import json
import os
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.serving.bare_loops import BareLoop
from benchmarks.serving.server_process import HOST, ServerProcess
from benchmarks.serving.study_records import add_study, ratio_with_interval
from polarprune_deploy import load_runner
from polarprune_deploy.load.connections import Dialer
from polarprune_deploy.load.endpoint import Endpoint, parse_endpoint
from polarprune_deploy.load.http_answers import HttpAnswer
from polarprune_deploy.load.loops import ClosedLoop
from polarprune_deploy.load.samples import Outcome, Samples
from polarprune_deploy.load.traffic import run_loop

RING = 16
TOLERANCE = 1e-4
APP = Path(__file__).with_name("litserve_app.py")
START_SECONDS = 60.0


class Expected:
    """Right answers, from the network run alone; how they are written is each server's own."""

    def __init__(self, outputs: np.ndarray, read: Any) -> None:
        """`read` makes an array of an answer's body."""
        self._outputs, self._read = outputs, read
        self._allowed = TOLERANCE * float(np.abs(outputs).max())

    def same(self, request: int, answer: HttpAnswer) -> bool:
        """Whether an answer is the right one."""
        got = self._read(answer)
        return bool(np.abs(got - self._outputs[request]).max() <= self._allowed)


def requests_of(endpoint: Endpoint, path: str, bodies: list[bytes], *fields: str) -> list[bytes]:
    """Whole requests, ready to be sent."""
    return [
        endpoint.head("POST", path, f"Content-Length: {len(body)}", *fields) + body
        for body in bodies
    ]


def main(arguments: list[str]) -> None:
    """Measure, and add to the record."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving litserve")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--python", required=True, help="of the venv that has litserve")
    parser.add_argument("--clients", default="1,16,32")
    parser.add_argument("--batch", type=int, default=16, help="LitServe's max_batch_size")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args(arguments)
    runner = load_runner(args.bundle)
    spec, name = runner.inputs[0], runner.inputs[0].name
    images = np.random.default_rng(0).standard_normal((RING, *spec.shape[1:])).astype(np.float32)
    right = np.concatenate(
        [next(iter(runner.run({name: image[None]}).values())) for image in images]
    )
    with tempfile.TemporaryDirectory() as folder:
        ours = ServerProcess(
            args.bundle, Path(folder) / "log", "--backend", "onnxruntime", "--grpc-port", "-1"
        )
        with ours:
            ours.wait_ready()
            model = json.loads(ours.ask("/status")[1])["models"][0]
            found = _beside(args, ours, model, name, images, right)
    add_study("litserve", model["network"], found)
    for row in found["rows"]:
        times, rival = row["times"], row["rival"]
        print(
            f"{row['clients']:3} clients: {row['ours_rps']:.0f} against {row[f'{rival}_rps']:.0f} "
            f"requests/s ({rival}), {times['ratio']:.2f} [{times['low']:.2f}, {times['high']:.2f}] "
            f"times, at most {row['bound_times']['ratio']:.2f}; p99 {row['ours_p99_ms']:.1f} "
            f"against {row[f'{rival}_p99_ms']:.1f} ms; ours with JSON {row['ours_json_rps']:.0f}/s"
        )


def _beside(
    args: Any, ours: ServerProcess, model: dict[str, Any], name: str, images: np.ndarray,
    right: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    batch = model["batch"]
    onnx = args.bundle / "model.onnx"
    threads = model["runs"].partition("intra op threads ")[2].partition(",")[0]
    ways = {"litserve": (threads, "1"), "litserve_workers": ("1", threads)}
    endpoint, name_of_ours = parse_endpoint(ours.url), model["name"]
    targets = {
        "ours": _ours(endpoint, name_of_ours, name, images, right),
        "ours_json": _ours_json(endpoint, name_of_ours, name, images, right),
    }
    bare = BareLoop(args.bundle, None, spinning=False)
    running_as = {"ours": ours.pid, "ours_json": ours.pid}
    with ExitStack() as running:
        for way, (each, workers) in ways.items():
            port = _free_port()
            words = [str(onnx), str(port), str(args.batch), each, str(batch["window_ms"]), workers]
            process = subprocess.Popen(
                [args.python, str(APP), *words], stdout=subprocess.DEVNULL, start_new_session=True
            )
            running.callback(_kill, process)
            rival = parse_endpoint(f"http://{HOST}:{port}")
            _wait_until_up(rival, process)
            targets[way] = _theirs(rival, images, right)
            running_as[way] = process.pid
        rows = [
            _row(targets, running_as, bare, batch["size"], int(clients), args)
            for clients in args.clients.split(",")
        ]
    versions = subprocess.run(
        [args.python, "-c", "from importlib.metadata import version as v; "
         "print(v('litserve'), v('onnxruntime'), v('fastapi'))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return {
        "network": model["network"], "batch": batch, "runs": model["runs"], "threads": threads,
        "litserve_batch": args.batch, "rounds": args.rounds,
        "seconds_a_block": args.seconds, "rows": rows,
        "litserve": dict(zip(("litserve", "onnxruntime", "fastapi"), versions, strict=True)),
    }  # fmt: skip


def _row(
    targets: dict[str, tuple[Dialer, list[bytes], Expected]], running_as: dict[str, int],
    bare: BareLoop, size: int, clients: int, args: Any,
) -> dict[str, Any]:  # fmt: skip
    samples: dict[str, list[Samples]] = {name: [] for name in targets}
    generator = np.random.default_rng(clients)
    bound = []
    for number in range(-1, args.rounds):  # the first one warms up
        for name in generator.permutation([*targets, "bare"]).tolist():
            _wake_alone(running_as, name)
            if name == "bare":
                times = bare.seconds_of_runs(size, args.seconds)
                bound += [size * len(times) / sum(times)] if number >= 0 else []
                continue
            block = run_loop(_block(*targets[name], clients, args.seconds), exact_timers=False)
            if number >= 0:
                samples[name].append(block)
    rates = {name: [_rate(block) for block in blocks] for name, blocks in samples.items()}
    rates["bare"] = bound
    row: dict[str, Any] = {"clients": clients, "rates": rates}
    for name, blocks in samples.items():
        times = np.concatenate([(b.done - b.due)[b.outcomes == Outcome.OK] for b in blocks]) * 1e3
        row |= {f"{name}_rps": median(rates[name]), f"{name}_n": len(times)}
        row |= {f"{name}_p{q}_ms": float(np.percentile(times, q)) for q in (50, 99)}
        row[f"{name}_bad"] = int(sum((b.outcomes != Outcome.OK).sum() for b in blocks))
    rivals = [name for name in targets if name.startswith("litserve")]
    best = max(rivals, key=lambda rival: median(rates[rival]))
    row["rival"] = best
    row["times"] = ratio_with_interval(rates["ours"], rates[best])
    row["one_worker_times"] = ratio_with_interval(rates["ours"], rates["litserve"])
    row["bound_times"] = ratio_with_interval(bound, rates[best])
    row["json_times"] = ratio_with_interval(rates["ours_json"], rates[best])
    return row


def _wake_alone(running_as: dict[str, int], name: str) -> None:
    """Stop all servers but one, with their workers; all of them for a name that is none."""
    for pid in set(running_as.values()):
        send = os.killpg if os.getpgid(pid) == pid else os.kill
        send(pid, signal.SIGCONT if pid == running_as.get(name) else signal.SIGSTOP)


async def _block(
    dialer: Dialer, ring: list[bytes], first: Any, clients: int, seconds: float
) -> Samples:
    loop = ClosedLoop(dialer, ring, first, clients)
    try:
        return await loop.run(seconds)
    finally:
        await loop.close()


def _rate(samples: Samples) -> float:
    right = samples.outcomes == Outcome.OK
    return float(right.sum() / (samples.done[right].max() - samples.due[0]))


def _ours(
    endpoint: Endpoint, model: str, name: str, images: np.ndarray, right: np.ndarray
) -> tuple[Dialer, list[bytes], Expected]:
    tensor = {"name": name, "shape": [1, *images.shape[1:]], "datatype": "FP32",
              "parameters": {"binary_data_size": images[0].nbytes}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    ring = requests_of(
        endpoint, f"/v2/models/{model}/infer", [head + image.tobytes() for image in images],
        f"Inference-Header-Content-Length: {len(head)}",
    )  # fmt: skip

    def read(answer: HttpAnswer) -> np.ndarray:
        return np.frombuffer(answer.body[answer.json_length :], np.float32)

    return Dialer(endpoint), ring, Expected(right, read)


def _ours_json(
    endpoint: Endpoint, model: str, name: str, images: np.ndarray, right: np.ndarray
) -> tuple[Dialer, list[bytes], Expected]:
    bodies = [
        json.dumps({"inputs": [{"name": name, "shape": [1, *image.shape], "datatype": "FP32",
                                "data": image.ravel().tolist()}]}).encode()
        for image in images
    ]  # fmt: skip
    ring = requests_of(endpoint, f"/v2/models/{model}/infer", bodies)

    def read(answer: HttpAnswer) -> np.ndarray:
        return np.array(json.loads(answer.body)["outputs"][0]["data"], np.float32)

    return Dialer(endpoint), ring, Expected(right, read)


def _theirs(
    endpoint: Endpoint, images: np.ndarray, right: np.ndarray
) -> tuple[Dialer, list[bytes], Expected]:
    bodies = [
        json.dumps({"data": base64.b64encode(image.tobytes()).decode()}).encode()
        for image in images
    ]
    ring = requests_of(endpoint, "/predict", bodies, "Content-Type: application/json")

    def read(answer: HttpAnswer) -> np.ndarray:
        return np.frombuffer(base64.b64decode(json.loads(answer.body)["data"]), np.float32)

    return Dialer(endpoint), ring, Expected(right, read)


def _wait_until_up(endpoint: Endpoint, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            if endpoint.ask("GET", "/health")[0] == 200:
                return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"LitServe does not come up: {error}") from None
        if time.monotonic() > end:
            raise SystemExit("LitServe does not become healthy")
        time.sleep(0.1)


def _kill(process: subprocess.Popen[bytes]) -> None:
    # Its workers outlive it otherwise, and answer for whoever comes next.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    import socket

    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
