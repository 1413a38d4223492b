"""Deadlines, cancellation, bounds and failures: what a call meets instead of a result."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from polarprune.errors import ConfigError
from polarprune_deploy.fleet.triton_protocol import message_class
from polarprune_deploy.serving.serve_options import Bounds
from polarprune_deploy.serving.served_model import ServedModel
from tests.deploy.serving.grpc_here import (
    PATIENCE,
    Gate,
    Here,
    engine_is_busy,
    grpc_here,
    infer_request,
    logits_of,
    refused,
    until,
)
from tests.deploy.serving.served_bundle import MOST, Reference, some_images

SHORT = 0.15
"""Seconds of a deadline that is to pass."""
TOKEN = b"0123456789abcdef"
Fault = Callable[[Here], Awaitable[Any]]


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the server logs."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign]
    logger = logging.getLogger("polarprune.serve")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


@pytest.mark.parametrize("how", ["timeout parameter", "deadline of the call", "--timeout-ms"])
def test_a_request_that_cannot_be_in_time_is_never_computed(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, reference: Reference, how: str
) -> None:
    late, patient = some_images(1), some_images(2)

    async def run() -> None:
        options = {"timeout_ms": round(1e3 * SHORT)} if how == "--timeout-ms" else {}
        async with grpc_here(bundle_folder, **options) as here:
            gate = Gate().hold(monkeypatch)
            first = await engine_is_busy(here, gate)
            in_time = here.infer(infer_request(patient, PATIENCE), timeout=PATIENCE)
            parameter = SHORT if how == "timeout parameter" else None
            deadline = SHORT if how == "deadline of the call" else None
            error = await refused(here.infer(infer_request(late, parameter), timeout=deadline))
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            failures = here.model.counters.snapshot
            await until(lambda: sum(failures().failures.values()))
            gate.opened.set()
            np.testing.assert_allclose(
                logits_of(await in_time), reference(patient), rtol=1e-5, atol=1e-6
            )
            await first
            assert gate.saw(patient)
            assert not gate.saw(late)
            assert sum(failures().failures.values()) == 1

    asyncio.run(run())


def test_a_canceled_request_is_never_computed_and_counted_once(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = some_images(1)

    async def run() -> None:
        async with grpc_here(bundle_folder) as here:
            gate = Gate().hold(monkeypatch)
            first = await engine_is_busy(here, gate)
            call = here.infer(infer_request(gone))
            await until(lambda: here.model.batcher.pending == 1)
            call.cancel()
            failures = here.model.counters.snapshot
            await until(lambda: failures().failures["CANCELED"])
            gate.opened.set()
            await first
            assert not gate.saw(gone)
            assert sum(failures().failures.values()) == 1
            assert here.held.nbytes == 0

    asyncio.run(run())


def test_a_full_queue_says_when_to_come_again(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with grpc_here(bundle_folder, bounds=Bounds(queue_requests=2)) as here:
            gate = Gate().hold(monkeypatch)
            first = await engine_is_busy(here, gate)
            waiting = [here.infer(infer_request(some_images(n))) for n in (1, 2)]
            await until(lambda: here.model.batcher.pending == 2)
            error = await refused(here.infer(infer_request(some_images(3))))
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert "the queue is full" in str(error.details())
            assert int(dict(error.trailing_metadata())["retry-after"]) >= 1
            assert here.model.counters.snapshot().failures["REJECTED"] == 1
            gate.opened.set()
            for call in (first, *waiting):
                await call

    asyncio.run(run())


async def too_many_bytes(here: Here) -> Any:
    return await here.infer(infer_request(some_images(0, MOST)))


async def too_many_calls(here: Here) -> Any:
    open_calls = [here.method("ModelStreamInfer", "stream_stream")() for _ in range(2)]
    for call in open_calls:
        await call.write(infer_request(some_images(0)))
        await call.read()
    # Another connection: on the same one gRPC's client would wait for the others' end.
    apart = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{here.port}", options=apart) as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        try:
            return await live(b"", timeout=PATIENCE)
        finally:
            for call in open_calls:
                call.cancel()


async def no_message(here: Here) -> Any:
    return await here.method("ModelInfer", "stream_unary")()


async def draining(here: Here) -> Any:
    here.repository.draining = True
    try:
        return await here.infer(infer_request(some_images(0)))
    finally:
        here.repository.draining = False


@pytest.mark.parametrize(
    ("code", "words", "fault", "bounds"),
    [
        ("UNAVAILABLE", "too many bytes", too_many_bytes, Bounds(total_bytes=2000)),
        ("UNAVAILABLE", "too many calls are open", too_many_calls, Bounds(connections=2)),
        ("DEADLINE_EXCEEDED", "no message came", no_message, Bounds(body_seconds=0.1)),
        ("UNAVAILABLE", "the server stops", draining, Bounds()),
    ],
)
def test_bounds_refuse_in_words_and_nothing_stays_held(
    bundle_folder: Path, code: str, words: str, fault: Fault, bounds: Bounds
) -> None:
    async def run() -> None:
        async with grpc_here(bundle_folder, bounds=bounds) as here:
            error = await refused(fault(here))
            assert (error.code().name, words in str(error.details())) == (code, True)

            async def answers() -> bool:
                try:
                    await here.infer(infer_request(some_images(0)), timeout=PATIENCE)
                except grpc.aio.AioRpcError:
                    return False
                return True

            async with asyncio.timeout(PATIENCE):
                while not await answers():  # calls that were canceled may take a moment to go
                    await asyncio.sleep(0.01)
            await until(lambda: here.held.nbytes == 0)

    asyncio.run(run())


def test_the_token_is_wanted_before_a_message_is_read(bundle_folder: Path) -> None:
    async def run() -> None:
        async with grpc_here(bundle_folder, TOKEN) as here:
            infer, content = here.method("ModelInfer"), infer_request(some_images(0))
            for given in (None, "", "Bearer", f"Bearer {TOKEN.decode()}x", f"Basic {TOKEN!r}"):
                metadata = [] if given is None else [("authorization", given)]
                error = await refused(infer(content, metadata=metadata))
                assert error.code() == grpc.StatusCode.UNAUTHENTICATED
                assert TOKEN.decode() not in str(error.details())
            # Nobody reads what such a stranger has to say, so that he needs to say nothing.
            silent = here.method("ModelInfer", "stream_unary")()
            assert (await refused(silent)).code() == grpc.StatusCode.UNAUTHENTICATED
            for method in ("ModelMetadata", "ServerMetadata", "RepositoryIndex", "LogSettings"):
                error = await refused(here.method(method)(b""))
                assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            stream = here.method("ModelStreamInfer", "stream_stream")()
            assert (await refused(stream.read())).code() == grpc.StatusCode.UNAUTHENTICATED
            for method in ("ServerLive", "ServerReady"):
                assert await here.method(method)(b"")
            assert await here.method("Check", service="grpc.health.v1.Health")(b"")
            token = [("authorization", f"bearer {TOKEN.decode()}")]
            assert logits_of(await infer(content, metadata=token)).shape == (1, 3)

    asyncio.run(run())


def test_what_nobody_foresaw_is_internal_and_told_to_the_log_alone(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, records: list[logging.LogRecord]
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret of ours")

    async def run() -> None:
        async with grpc_here(bundle_folder) as here:
            content = infer_request(some_images(0))
            with monkeypatch.context() as patch:
                patch.setattr(ServedModel, "infer", broken)
                error = await refused(here.infer(content, metadata=[("x-request-id", "seven")]))
                stream = here.method("ModelStreamInfer", "stream_stream")()
                await stream.write(content)
                streamed = message_class("ModelStreamInferResponse").FromString(await stream.read())
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF
            assert error.code() == grpc.StatusCode.INTERNAL
            for words in (str(error.details()), streamed.error_message):
                assert words == "the server failed on this request"
            assert logits_of(await here.infer(content)).shape == (1, 3)
            assert here.model.counters.snapshot().failures["BACKEND"] == 2

    asyncio.run(run())
    first, second = (record for record in records if record.levelno >= logging.ERROR)
    assert vars(first)["request_id"] == "seven"
    for record in (first, second):
        assert record.exc_info is not None
        assert "a secret of ours" in str(record.exc_info[1])


def test_an_engine_that_fails_is_internal_and_counted_once(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room for 17 tensors")

    async def run() -> None:
        async with grpc_here(bundle_folder) as here:
            monkeypatch.setattr(
                "polarprune_deploy.serving.bucketed_engine.BucketedEngine.run", fail
            )
            error = await refused(here.infer(infer_request(some_images(0))))
            assert error.code() == grpc.StatusCode.INTERNAL
            assert error.details() == "the model failed on this request"
            failures = here.model.counters.snapshot().failures
            assert failures == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 1, "OTHER": 0}

    asyncio.run(run())


def test_a_port_that_is_taken_is_refused_in_one_line(bundle_folder: Path) -> None:
    async def run() -> None:
        async with grpc_here(bundle_folder) as here:
            with pytest.raises(ConfigError, match=f"port {here.port} of 127.0.0.1 cannot"):
                async with grpc_here(bundle_folder, grpc_port=here.port):
                    pass

    asyncio.run(run())
