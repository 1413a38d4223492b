"""gRPC's health protocol, byte by byte as its description has it."""

import asyncio
from pathlib import Path

import grpc
import pytest

from tests.deploy.serving.grpc_here import grpc_here, refused

HEALTH = "grpc.health.v1.Health"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


def asked(service: str) -> bytes:
    return b"\x0a" + bytes([len(service)]) + service.encode()


@pytest.mark.parametrize("service", ["", "ready", "inference.GRPCInferenceService"])
def test_readiness_goes_when_the_server_is_about_to_leave_and_liveness_stays(
    bundle_folder: Path, service: str
) -> None:
    async def run() -> None:
        async with grpc_here(bundle_folder) as here:
            check = here.method("Check", service=HEALTH)
            assert await check(asked(service)) == SERVING
            here.repository.leaving = True
            assert await check(asked(service)) == NOT_SERVING
            assert await check(asked("live")) == SERVING
            here.repository.broken = True
            assert await check(asked("live")) == NOT_SERVING

    asyncio.run(run())


def test_another_service_is_not_found(bundle_folder: Path) -> None:
    async def run() -> None:
        async with grpc_here(bundle_folder) as here:
            error = await refused(here.method("Check", service=HEALTH)(asked("nobody")))
            assert error.code() == grpc.StatusCode.NOT_FOUND
            error = await refused(here.method("Check", service=HEALTH)(b"\xff"))
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(run())


def test_a_watcher_is_told_of_changes_and_sent_away_at_the_end(bundle_folder: Path) -> None:
    async def run() -> None:
        async with grpc_here(bundle_folder) as here:
            watching = here.method("Watch", "unary_stream", HEALTH)(asked(""))
            assert await watching.read() == SERVING
            here.repository.leaving = True
            assert await watching.read() == NOT_SERVING
            here.repository.leaving = False
            assert await watching.read() == SERVING
            here.repository.draining = True
            assert await watching.read() == NOT_SERVING
            assert await watching.read() is grpc.aio.EOF

    asyncio.run(run())
