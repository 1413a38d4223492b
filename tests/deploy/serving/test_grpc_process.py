"""The gRPC side of the process: how it ends under load, and why it does not start."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from polarprune.errors import BackendUnavailable
from polarprune_deploy.fleet.triton_protocol import message_class
from polarprune_deploy.serving.serve_options import ServeOptions
from polarprune_deploy.serving.server import serve
from tests.deploy.serving.grpc_here import PATIENCE, infer_request, logits_of
from tests.deploy.serving.served_bundle import Reference, some_images
from tests.served import Served

SENDERS = 8
READY = "/inference.GRPCInferenceService/ServerReady"
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def test_sigterm_under_load_loses_no_answer(bundle_folder: Path, reference: Reference) -> None:
    images = [some_images(number) for number in range(SENDERS)]
    expected = [reference(part) for part in images]
    answered = [0] * SENDERS
    ends: list[Any] = []

    async def send(infer: Any, number: int) -> None:
        while True:
            call = infer(infer_request(images[number]), timeout=PATIENCE)
            if await call.code() != grpc.StatusCode.OK:
                ends.append((await call.code(), await call.details()))
                return
            content = await call
            np.testing.assert_allclose(logits_of(content), expected[number], rtol=1e-5, atol=1e-6)
            answered[number] += 1

    async def run(server: Served) -> None:
        async with grpc.aio.insecure_channel(server.address("grpc")) as channel:
            idle = channel.stream_stream(STREAM)()
            await idle.write(infer_request(images[0]))
            await idle.read()
            ready = channel.unary_unary(READY)
            assert message_class("ServerReadyResponse").FromString(await ready(b"")).ready
            infer = channel.unary_unary(INFER)
            senders = [asyncio.create_task(send(infer, number)) for number in range(SENDERS)]
            async with asyncio.timeout(PATIENCE):
                while min(answered) < 20:
                    await asyncio.sleep(0.005)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*senders)
            with pytest.raises(grpc.aio.AioRpcError, match="the server stops"):
                await idle.read()

    with Served(bundle_folder, "--grpc-port", "0", "--queue", "4096") as server:
        server.wait_ready()
        asyncio.run(run(server))
    assert ends == [(grpc.StatusCode.UNAVAILABLE, "the server stops")] * SENDERS
    messages = [line["message"] for line in server.events()]
    assert messages[-2:] == ["draining", "stopped"]


def test_a_taken_port_is_one_line(server: Served, bundle_folder: Path) -> None:
    command = [sys.executable, "-m", "polarprune", "serve", str(bundle_folder), "--http-port", "0"]
    ended = subprocess.run(
        [*command, "--metrics-port", "-1", "--grpc-port", str(server.ports["grpc"])],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line == (
        f"error: port {server.ports['grpc']} of 127.0.0.1 cannot be listened on for gRPC "
        "(it is taken, or not allowed); choose another --grpc-port"
    )


@pytest.mark.parametrize("package", ["grpc", "google.protobuf"])
def test_a_package_that_is_not_here_is_named(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendUnavailable, match=rf"{package} cannot be imported.*--grpc-port -1"):
        serve(ServeOptions(bundle_folder))
