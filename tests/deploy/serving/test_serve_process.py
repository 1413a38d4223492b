"""The real process: signals, drains, reloads, a device that breaks, what it says on stderr."""

import itertools
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serving.server_process import Answer
from polarprune_deploy.serving.server import NOT_READY
from polarprune_export.onnx_session import open_session, run_session
from tests.hurt_server import STICKY
from tests.served import Served
from tests.small_bundles import SIDE, small_model, write_small_bundle

SECONDS = 60
BIAS = 100.0
IMAGES = np.random.default_rng(3).standard_normal((8, 3, SIDE, SIDE), np.float32)


@pytest.fixture(scope="module")
def plain() -> "np.ndarray[Any, Any]":
    """What the network without a bias answers to `IMAGES`."""
    return run_session(open_session(small_model().SerializeToString(), threads=1), IMAGES, chunk=8)[
        0
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_small_bundle(tmp_path / "models" / "net", with_engine=False)
    return tmp_path / "models"


def values(text: bytes) -> dict[tuple[str, str], float]:
    """Samples by name, and reason or state where there is one."""
    return {
        (s.name.removesuffix("_total"), s.labels.get("reason", s.labels.get("state", ""))): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }


def infer(
    server: Served, model: str, images: "np.ndarray[Any, Any]",
    headers: dict[str, str] | None = None,
) -> Answer:  # fmt: skip
    """A request in JSON."""
    tensor = {"name": "input", "datatype": "FP32", "shape": list(images.shape)}
    body = json.dumps({"inputs": [{**tensor, "data": images.ravel().tolist()}]}).encode()
    return server.ask(f"/v2/models/{model}/infer", body, headers)


def outputs_of(answer: Answer) -> "np.ndarray[Any, Any]":
    (output,) = answer.document["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def end(server: Served, *signals: signal.Signals) -> int:
    """The exit status after these, one soon after the other."""
    for number in signals:
        server.signal(number)
        time.sleep(0.02)
    return server.wait(SECONDS)


def test_it_is_alive_while_loading_and_a_signal_ends_it_there(folder: Path) -> None:
    with Served(folder, hurt="held") as server:
        server.wait_for("loading", model="net")
        assert server.ask("/v2/health/live").status == 200
        assert server.ask("/v2/health/ready").status == 503
        assert server.ask("/v2/models/net/ready").status == 503
        asked = infer(server, "net", IMAGES[:1])
        assert (asked.status, asked.headers["retry-after"]) == (503, "1")
        (entry,) = server.ask("/v2/repository/index", b"").document
        assert (entry["name"], entry["state"]) == ("net", "LOADING")
        start = time.monotonic()
        assert end(server, signal.SIGINT) == 0
        assert time.monotonic() - start < 5, "though the load never ends"
        assert server.events("no JSON") == []
        assert server.events()[-1]["message"].startswith(
            "ending while a model is still being loaded"
        )


def test_a_whole_life(folder: Path, plain: "np.ndarray[Any, Any]", tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-enough-characters\n")
    options = ("--poll-seconds", "0", "--access-log", "--token-file", str(token))
    bearer = {"Authorization": f"Bearer {token.read_text().strip()}"}
    with Served(folder, *options) as server:
        server.wait_for("serving", model="net")
        assert server.ask("/v2/health/ready").status == 200
        assert infer(server, "net", IMAGES[:1]).status == 401
        for rows in (1, 3, 8):
            answer = infer(server, "net", IMAGES[:rows], {**bearer, "X-Request-Id": f"mine-{rows}"})
            assert answer.headers["x-request-id"] == f"mine-{rows}"
            np.testing.assert_allclose(outputs_of(answer), plain[:rows], rtol=1e-4, atol=1e-5)
        forged = {**bearer, "X-Request-Id": 'a"\\u0000{}'}
        assert infer(server, "net", IMAGES[:1], forged).status == 200
        # Its sum is infinite, which JSON cannot say: a result all the same.
        unsaid = infer(server, "net", np.full_like(IMAGES[:1], 3e38), bearer)
        assert (unsaid.status, b"JSON cannot say" in unsaid.body) == (400, True)
        assert infer(server, "net", IMAGES[:, :1], bearer).status == 400
        assert infer(server, "net", IMAGES[:0], bearer).status == 400
        assert infer(server, "other", IMAGES[:1], bearer).status == 404

        found = values(server.ask("/metrics", port="metrics").body)
        assert found["nv_inference_request_success", ""] == 5
        reasons = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
        failures = [found["nv_inference_request_failure", reason] for reason in reasons]
        assert failures == [0, 0, 0, 2], "with the successes, all that reached the model"
        assert found["nv_inference_count", ""] == 1 + 3 + 8 + 1 + 1
        assert found["nv_inference_exec_count", ""] == 5
        assert found["polarprune_ready", ""] == 1

        reload(server, folder)
        answer = infer(server, "net", IMAGES[:2], bearer)
        np.testing.assert_allclose(outputs_of(answer), plain[:2] + BIAS, rtol=1e-4, atol=1e-3)
        assert values(server.ask("/metrics", port="metrics").body)["nv_inference_count", ""] == 16
        assert end(server, signal.SIGTERM) == 0
        assert [event["message"] for event in server.events()][-2:] == ["draining", "stopped"]
        check_log(server)


def reload(server: Served, folder: Path) -> None:
    """Another bundle in place of the first, of which SIGHUP tells."""
    write_small_bundle(folder / ".new", BIAS, with_engine=False)
    (folder / "net").rename(folder / ".old")
    (folder / ".new").rename(folder / "net")
    server.signal(signal.SIGHUP)
    server.wait_for("serving", times=2, model="net")


def check_log(server: Served) -> None:
    """One JSON object a line, a line for each request, each with its id."""
    assert server.events("no JSON") == []
    assert all({"time", "level", "message"} <= set(event) for event in server.events())
    requests = server.events("request")
    ids = [event["request_id"] for event in requests]
    assert len(set(ids)) == len(ids)
    assert {"mine-1", "mine-3", "mine-8"} <= set(ids)
    statuses = sorted(event["status"] for event in requests)
    assert statuses == [200] * 5 + [400] * 3 + [401, 404]
    assert all(event["ms"] >= 0 for event in requests)


class Customer(threading.Thread):
    """Asks until it is refused, and notes when each question began and what came back."""

    def __init__(self, server: Served, position: int) -> None:
        super().__init__(daemon=True)
        self._server, self.position = server, position
        self.heard: list[tuple[float, Answer | OSError]] = []
        self.asking_since = 0.0

    def run(self) -> None:
        while True:
            began = self.asking_since = time.monotonic()
            try:
                answer = infer(self._server, "net", IMAGES[self.position : self.position + 1])
            except OSError as error:
                self.heard.append((began, error))
                return
            self.heard.append((began, answer))
            if answer.status != 200:
                return


def test_signals_under_load_lose_no_answer(folder: Path, plain: "np.ndarray[Any, Any]") -> None:
    options = ("--lame-duck-seconds", "0.5", "--poll-seconds", "0.1")
    with Served(folder, *options, hurt="slow") as server:
        server.wait_for("serving", model="net")
        customers = [Customer(server, position % 8) for position in range(24)]
        for customer in customers:
            customer.start()
        while not all(customer.heard for customer in customers):
            time.sleep(0.01)
        told = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait_for("draining")
        assert server.ask("/v2/health/ready").status == 503
        assert server.ask("/v2/health/live").status == 200
        assert end(server, signal.SIGTERM, signal.SIGINT, signal.SIGTERM) == 0
        ended = time.monotonic()
        for customer in customers:
            customer.join(SECONDS)
        during = 0
        for customer in customers:
            for began, answer in customer.heard:
                if isinstance(answer, OSError):
                    assert began > told
                    continue
                assert answer.status in (200, 503)
                assert answer.status == 200 or began > told, "what came before it is answered"
                if answer.status == 200:
                    during += began > told
                    expected = plain[customer.position : customer.position + 1]
                    np.testing.assert_allclose(outputs_of(answer), expected, rtol=1e-4, atol=1e-5)
        assert during > 10, "the lame duck went on answering"
        assert ended - told < 10
        assert server.events("no JSON") == []


def test_a_device_that_breaks_ends_the_process_and_nothing_wrong_is_answered(
    folder: Path, plain: "np.ndarray[Any, Any]"
) -> None:
    with Served(folder, hurt="sticky") as server:
        server.wait_for("serving", model="net")
        customers = [Customer(server, position) for position in range(8)]
        for customer in customers:
            customer.start()
        while not all(customer.heard for customer in customers):
            time.sleep(0.01)
        assert infer(server, "net", np.full_like(IMAGES[:1], 2e20)).status == 500
        assert server.wait(SECONDS) == 1
        for customer in customers:
            customer.join(SECONDS)
            for _, answer in customer.heard:
                if isinstance(answer, Answer) and answer.status == 200:
                    expected = plain[customer.position : customer.position + 1]
                    np.testing.assert_allclose(outputs_of(answer), expected, rtol=1e-4, atol=1e-5)
                elif isinstance(answer, Answer):
                    assert answer.status in (500, 503)
        (event,) = server.events("no JSON")
        line = event["line"]
        assert line.startswith("error: the engine of net failed so that no result can be trusted")
        assert STICKY in line
        assert [event["level"] for event in server.events("engine failed")] == ["critical"]


def test_an_engine_that_hangs_does_not_hold_up_the_end(folder: Path) -> None:
    with Served(folder, "--drain-seconds", "0.2", hurt="hang") as server:
        server.wait_for("serving", model="net")
        found: list[Answer | OSError] = []

        def ask() -> None:
            try:
                found.append(infer(server, "net", np.full_like(IMAGES[:1], 2e20)))
            except OSError as error:
                found.append(error)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        server.wait_for("hanging")
        start = time.monotonic()
        assert end(server, signal.SIGTERM) == 0
        assert time.monotonic() - start < 6
        asking.join(SECONDS)
        assert len(found) == 1
        messages = [event["message"] for event in server.events()]
        assert "not all requests were answered in time" in messages
        assert messages[-1].startswith("ending while a model")


def test_what_cannot_be_served_ends_in_one_line(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "net" / "model.onnx").write_bytes(b"garbage")
    with ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = str(taken.getsockname()[1])
        cases = {
            "cannot be listened on (Address already in use); choose another --http-port": [
                Served(folder, "--http-port", port),
            ],
            "cannot be listened on (Address already in use); choose another --metrics-port": [
                Served(folder, "--metrics-port", port),
            ],
            # An address of TEST-NET-1, which no machine has.
            "(Cannot assign requested address); choose another --host": [
                Served(folder, "--host", "192.0.2.1"),
            ],
            "the manifest says": [Served(broken)],
        }
        for server in itertools.chain.from_iterable(cases.values()):
            stack.enter_context(server)
        for words, servers in cases.items():
            for server in servers:
                assert server.wait(SECONDS) == 1
                (event,) = server.events("no JSON")
                assert event["line"].startswith("error: ")
                assert words in event["line"]


def test_a_model_that_does_not_load_keeps_the_server_from_being_ready_and_is_named(
    folder: Path,
) -> None:
    for name in ("bad", "worse"):
        shutil.copytree(folder / "net", folder / name)
        (folder / name / "model.onnx").write_bytes(b"garbage")
    with Served(folder, "--poll-seconds", "0.1") as server:
        warned = server.wait_for(NOT_READY)
        assert (warned["level"], warned["models"]) == ("warning", ["bad", "worse"])
        assert server.ask("/v2/health/ready").status == 503
        assert infer(server, "net", IMAGES[:1]).status == 200
        for name in ("bad", "worse"):
            shutil.copyfile(folder / "net" / "model.onnx", folder / name / "model.onnx")
        server.wait_for("ready")
        assert server.ask("/v2/health/ready").status == 200
        assert end(server, signal.SIGTERM) == 0


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_all_addresses_of_ipv6_are_those_of_ipv4_too(folder: Path) -> None:
    with Served(folder, "--host", "::") as server:
        port = server.wait_for("listening")["http"]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=SECONDS) as connection:
                connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                assert connection.recv(64).startswith(b"HTTP/1.1 200")
        assert end(server, signal.SIGTERM) == 0


def test_where_nothing_loads_each_model_is_named(folder: Path) -> None:
    (folder / "net" / "model.onnx").write_bytes(b"garbage")
    shutil.copytree(folder / "net", folder / "other")
    with Served(folder) as server:
        assert server.wait(SECONDS) == 1
        (event,) = server.events("no JSON")
    for name in ("net", "other"):
        assert f"{name}: {folder.name}/{name}/model.onnx has 7 bytes" in event["line"]


@pytest.fixture
def serve(run: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """`polarprune serve`, for what is refused before anything is started."""

    def call(*arguments: str) -> str:
        code, out, err = run("serve", *arguments)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return call


def test_what_is_no_bundle_is_refused_in_one_line(serve: Any, folder: Path, tmp_path: Path) -> None:
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("x")
    assert "is neither a bundle nor a folder of bundles" in serve(str(empty))
    assert "cannot be read (Not a directory)" in serve(str(file))
    assert "cannot be read (No such file or directory)" in serve(str(tmp_path / "absent"))
    misnamed = tmp_path / "more" / "my net\n"
    shutil.copytree(folder / "net", misnamed)
    assert "its name cannot be a model's" in serve(str(misnamed.parent))
    assert "its name cannot be a model's" in serve(str(misnamed))
    shutil.copytree(folder / "net", tmp_path / "third" / "net" / "v1")
    assert "'net/v1' holds a bundle, and its name is no version" in serve(str(tmp_path / "third"))


def test_a_token_file_that_is_none_is_refused_in_one_line(
    serve: Any, folder: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    assert "cannot be read" in serve(str(folder), "--token-file", str(token))
    for content in (b"", b"short", b"two words that are long enough", b"\xff" * 20):
        token.write_bytes(content)
        assert "must hold one token" in serve(str(folder), "--token-file", str(token))


def test_options_out_of_range_are_refused_in_one_line(serve: Any, folder: Path) -> None:
    for words, *options in (
        ("--backend must be one of", "--backend", "torch"),
        ("--http-port must be 0 to 65535", "--http-port", "70000"),
        ("the ports must differ", "--http-port", "8002"),
        ("--grpc-port must be 0 to 65535, or -1 for none, got -2", "--grpc-port", "-2"),
        ("--drain-seconds must be from 0 to 1000000, got -1", "--drain-seconds", "-1"),
        ("--drain-seconds must be from 0 to 1000000, got inf", "--drain-seconds", "inf"),
        ("--window-ms must be from 0 to 1000000, got nan", "--window-ms", "nan"),
        ("--threads must be at least 1, got 0", "--threads", "0"),
        ("--queue must be above 0, got 0", "--queue", "0"),
        ("--max-body-mb must be above 0, got -1", "--max-body-mb", "-1"),
        ("--batch-size must be at least 1", "--batch-size", "0"),
    ):
        assert words in serve(str(folder), *options)
