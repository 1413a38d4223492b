"""The gRPC side of `polarprune serve`: one port, in the event loop that HTTP is served from."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from polarprune.errors import ConfigError
from polarprune_deploy.fleet.triton_protocol import SERVICE, message_class
from polarprune_deploy.serving.grpc_calls import GrpcCalls, refused
from polarprune_deploy.serving.grpc_documents import OPEN_METHODS, document_answers
from polarprune_deploy.serving.grpc_health import HEALTH_SERVICE, Health
from polarprune_deploy.serving.grpc_infer import Inference
from polarprune_deploy.serving.grpc_stream import InferStreams
from polarprune_deploy.serving.held_bytes import Held
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.serve_options import FLUSH_SECONDS, ServeOptions

IDLE_SECONDS = 300
"""A connection without calls is closed after it; clients open another by themselves."""
PING_SECONDS, PONG_SECONDS = 60, 20
"""A silent connection is asked whether anybody is there."""
LEAST_PING_SECONDS = 5
"""Clients that ask us more often are sent away."""


@asynccontextmanager
async def grpc_server(
    repository: Repository, options: ServeOptions, token: bytes | None, held: Held
) -> AsyncIterator[int]:
    """Listen; at the end, the open calls get their answers.

    Args:
        token: that calls must bring; None for none.
        held: shared with HTTP.

    Yields:
        The port.

    Raises:
        ConfigError: the port is taken.
    """
    assert options.grpc_port is not None
    server = grpc.aio.server(options=_channel_options(options))
    calls, streams = GrpcCalls(options, token, held), InferStreams()
    server.add_generic_rpc_handlers(
        (
            _inference_service(repository, options, calls, streams, held),
            _health_service(repository, calls, held),
        )
    )
    port = _bind(server, options.host, options.grpc_port)
    await server.start()
    try:
        yield port
    finally:
        streams.close()
        await calls.quiet()
        await server.stop(FLUSH_SECONDS)


def _inference_service(
    repository: Repository, options: ServeOptions, calls: GrpcCalls, streams: InferStreams,
    held: Held,
) -> Any:  # fmt: skip
    inference = Inference(repository, options.bounds)
    response, stream_response = map(
        message_class, ("ModelInferResponse", "ModelStreamInferResponse")
    )

    async def infer(content: bytes, seconds: float | None) -> Any:
        message = response()
        await inference.answer(content, seconds, message)
        return message

    async def stream(context: Any) -> None:
        async def read() -> bytes | None:
            content = await context.read()
            return None if content is grpc.aio.EOF else content

        async def answer(content: bytes) -> bytes:
            message = stream_response()
            try:
                with held.room() as room:
                    room.grow(len(content))
                    seconds = context.time_remaining()
                    await inference.answer(content, seconds, message.infer_response)
            except Exception as error:
                message.error_message = str(refused(error, message.infer_response.id))
            done: bytes = message.SerializeToString()
            return done

        await streams.run(read, answer, context.write)

    handlers = {
        name: calls.unary(_path(SERVICE, name), answer, to_anybody=name in OPEN_METHODS)
        for name, answer in document_answers(repository).items()
    }
    handlers["ModelInfer"] = calls.unary(_path(SERVICE, "ModelInfer"), infer)
    handlers["ModelStreamInfer"] = calls.stream(_path(SERVICE, "ModelStreamInfer"), stream)
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _health_service(repository: Repository, calls: GrpcCalls, held: Held) -> Any:
    health = Health(repository)

    async def watch(context: Any) -> None:
        with held.room() as room:
            content = await calls.read(context, room)
        await health.watch(content, context.write)

    handlers = {
        "Check": calls.unary(_path(HEALTH_SERVICE, "Check"), health.check, to_anybody=True),
        "Watch": calls.stream(_path(HEALTH_SERVICE, "Watch"), watch),
    }
    return grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers)


def _path(service: str, method: str) -> str:
    return f"/{service}/{method}"


def _channel_options(options: ServeOptions) -> list[tuple[str, int]]:
    bounds = options.bounds
    return [
        ("grpc.so_reuseport", 0),  # else a taken port is shared in silence
        ("grpc.max_receive_message_length", bounds.body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", bounds.header_bytes),
        ("grpc.absolute_max_metadata_size", bounds.header_bytes),
        ("grpc.max_concurrent_streams", bounds.connections),
        ("grpc.max_allowed_incoming_connections", bounds.connections),
        ("grpc.server_handshake_timeout_ms", round(bounds.header_seconds * 1e3)),
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", PONG_SECONDS * 1000),
        ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_SECONDS * 1000),
    ]


def _bind(server: Any, host: str, port: int) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound: int = server.add_insecure_port(address)
    except RuntimeError:
        raise ConfigError(
            f"port {port} of {host} cannot be listened on for gRPC (it is taken, or not allowed); "
            "choose another --grpc-port"
        ) from None
    return bound
