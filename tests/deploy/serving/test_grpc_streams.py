"""Streams of requests: how many are read, what becomes of them when somebody leaves."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from polarprune_deploy.fleet.triton_protocol import message_class
from polarprune_deploy.serving.grpc_stream import MOST_IN_FLIGHT
from polarprune_deploy.serving.serve_options import Bounds
from tests.deploy.serving.grpc_here import (
    PATIENCE,
    Gate,
    Here,
    engine_is_busy,
    grpc_here,
    infer_request,
    refused,
    until,
)
from tests.deploy.serving.served_bundle import Images, Reference, some_images


async def waiting_stream(here: Here, images: list[Images]) -> Any:
    """A stream of requests, all of which wait for the engine."""
    stream = here.method("ModelStreamInfer", "stream_stream")()
    for part in images:
        await stream.write(infer_request(part))
    await until(lambda: here.model.batcher.pending == len(images))
    return stream


def test_a_stream_reads_no_more_than_may_be_in_flight(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = MOST_IN_FLIGHT + 40

    async def run() -> None:
        async with grpc_here(bundle_folder, bounds=Bounds(queue_requests=1000)) as here:
            gate = Gate().hold(monkeypatch)
            first = await engine_is_busy(here, gate)
            stream = here.method("ModelStreamInfer", "stream_stream")()

            async def send() -> None:
                for number in range(count):
                    await stream.write(infer_request(some_images(number)))
                await stream.done_writing()

            sender = asyncio.create_task(send())
            await until(lambda: here.model.batcher.pending >= MOST_IN_FLIGHT)
            await here.method("ServerLive")(b"")  # whatever else was under way has come as well
            assert here.model.batcher.pending == MOST_IN_FLIGHT
            gate.opened.set()
            answers = [await stream.read() for _ in range(count)]
            assert grpc.aio.EOF not in answers
            assert await stream.read() is grpc.aio.EOF
            await sender
            await first

    asyncio.run(run())


def test_a_stream_that_goes_cancels_what_it_asked(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [some_images(number) for number in range(1, 6)]

    async def run() -> None:
        async with grpc_here(bundle_folder) as here:
            gate = Gate().hold(monkeypatch)
            first = await engine_is_busy(here, gate)
            stream = await waiting_stream(here, images)
            stream.cancel()
            canceled = here.model.counters.snapshot
            await until(lambda: canceled().failures["CANCELED"] == len(images))
            gate.opened.set()
            await first
            assert not any(gate.saw(part) for part in images)
            await until(lambda: here.held.nbytes == 0)

    asyncio.run(run())


def test_at_the_end_streams_get_the_answers_they_are_owed_and_are_closed(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, reference: Reference
) -> None:
    images = [some_images(number) for number in range(1, 4)]

    async def run() -> None:
        async with grpc_here(bundle_folder) as here:
            gate = Gate().hold(monkeypatch)
            first = await engine_is_busy(here, gate)
            stream = await waiting_stream(here, images)
            closing = asyncio.create_task(here.repository.close(PATIENCE))
            await asyncio.sleep(0)
            gate.opened.set()
            await first
            response = message_class("ModelStreamInferResponse")
            for part in images:
                found = response.FromString(await stream.read()).infer_response
                np.testing.assert_allclose(
                    np.frombuffer(found.raw_output_contents[0], np.float32),
                    reference(part)[0], rtol=1e-5, atol=1e-6,
                )  # fmt: skip
            assert await closing
            await stream.write(infer_request(some_images(0)))
            refusal = response.FromString(await stream.read())
            assert refusal.error_message == "the server stops"
            await end_of(here, stream)

    async def end_of(here: Here, stream: Any) -> None:
        ended = asyncio.create_task(refused(stream.read()))
        await here.stop()
        error = await ended
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert error.details() == "the server stops"

    asyncio.run(run())
