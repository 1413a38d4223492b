"""The gRPC server in this process, where a test can hold the engine back."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from polarprune_deploy.fleet.triton_protocol import message_class
from polarprune_deploy.serving.bucketed_engine import BucketedEngine
from polarprune_deploy.serving.grpc_server import grpc_server
from polarprune_deploy.serving.held_bytes import Held
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.serve_options import ServeOptions
from tests.deploy.serving.served_bundle import MODEL, Images, some_images

SERVICE = "inference.GRPCInferenceService"
PATIENCE = 30.0
"""Seconds that nothing here takes."""


@dataclass
class Gate:
    """Holds every batch back until it is opened, and keeps what was computed."""

    opened: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    computed: list[Images] = field(default_factory=list)

    def hold(self, monkeypatch: pytest.MonkeyPatch) -> "Gate":
        """From now on."""
        run = BucketedEngine.run

        def gated(engine: Any, batch: dict[str, Images], rows: int) -> Any:
            self.entered.set()
            assert self.opened.wait(PATIENCE)
            self.computed.append(np.array(batch["input"][:rows]))
            return run(engine, batch, rows)

        monkeypatch.setattr(BucketedEngine, "run", gated)
        return self

    def saw(self, images: Images) -> bool:
        """Whether these were part of a batch."""
        return any(
            np.array_equal(images, batch[start : start + len(images)])
            for batch in self.computed
            for start in range(len(batch))
        )


@dataclass
class Here:
    """What a test may ask and look into."""

    repository: Repository
    held: Held
    channel: grpc.aio.Channel
    port: int
    stop: Callable[[], Awaitable[None]]

    @property
    def model(self) -> Any:
        """The small one."""
        return self.repository.get(MODEL)

    def method(self, name: str, kind: str = "unary_unary", service: str = SERVICE) -> Any:
        """A method that takes and gives bytes."""
        return getattr(self.channel, kind)(f"/{service}/{name}")

    def infer(self, content: bytes, **options: Any) -> Any:
        """One call of ModelInfer."""
        return self.method("ModelInfer")(content, **options)


@asynccontextmanager
async def grpc_here(
    source: Path, token: bytes | None = None, **options: Any
) -> AsyncIterator[Here]:
    """Serve a folder, loaded."""
    chosen = ServeOptions(source, backend="onnxruntime", threads=1, **{"grpc_port": 0} | options)
    repository = Repository(chosen, lambda name, error: None)
    await repository.look()
    held = Held(chosen.bounds)
    async with AsyncExitStack() as server:
        port = await server.enter_async_context(grpc_server(repository, chosen, token, held))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Here(repository, held, channel, port, server.aclose)
    await repository.close(PATIENCE)


def infer_request(images: Images, timeout: float | None = None) -> bytes:
    """On the wire; the timeout in seconds."""
    request = message_class("ModelInferRequest")(
        model_name=MODEL,
        inputs=[{"name": "input", "datatype": "FP32", "shape": images.shape}],
        raw_input_contents=[images.tobytes()],
    )
    if timeout is not None:
        request.parameters["timeout"].int64_param = round(timeout * 1e6)
    content: bytes = request.SerializeToString()
    return content


def logits_of(content: bytes) -> Images:
    """Of a response on the wire."""
    response = message_class("ModelInferResponse").FromString(content)
    (output,) = response.outputs
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(output.shape)


async def until(condition: Callable[[], object]) -> None:
    """Wait for it, and not for ever."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def refused(call: Any) -> grpc.aio.AioRpcError:
    """The error that it must end with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def engine_is_busy(here: Here, gate: Gate) -> Any:
    """A call whose batch is held back, so that all others wait."""
    first = here.infer(infer_request(some_images(0)), timeout=PATIENCE)
    await until(gate.entered.is_set)
    return first
