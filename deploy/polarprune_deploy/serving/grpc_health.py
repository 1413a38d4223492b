"""gRPC's own health protocol, which Kubernetes probes and load balancers speak.

It has two messages of one field each, so that the package with their generated code is not needed.
"""

import asyncio
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from polarprune_deploy.fleet.triton_protocol import SERVICE
from polarprune_deploy.serving.grpc_wire import not_a_message
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.request_errors import UNKNOWN, RequestError

HEALTH_SERVICE = "grpc.health.v1.Health"
LIVE = "live"
"""The service to ask for where the process is to be started anew if it does not serve."""
READY = frozenset({"", SERVICE, "ready"})
SERVING, NOT_SERVING = 1, 2
LOOK_EVERY = 0.2
"""Seconds between two looks for a watcher."""


def _messages() -> tuple[Any, Any]:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="health.proto", package="grpc.health.v1", syntax="proto3"
    )
    request = file.message_type.add(name="HealthCheckRequest")
    request.field.add(name="service", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    response = file.message_type.add(name="HealthCheckResponse")
    # An enumeration in the protocol's description; on the wire that is a whole number.
    response.field.add(name="status", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    request_class, response_class = (
        message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{file.package}.{message.name}")
        )
        for message in file.message_type
    )
    return request_class, response_class


class Health:
    """Check and Watch over one repository."""

    def __init__(self, repository: Repository) -> None:
        """Nothing is asked yet."""
        self._repository = repository
        self._request, self._response = _messages()

    async def check(self, content: bytes, _: float | None) -> Any:
        """The state now.

        Raises:
            RequestError: BAD, or UNKNOWN for another service.
        """
        return self._response(status=self._status(self._service(content)))

    async def watch(self, content: bytes, write: Any) -> None:
        """The state now and whenever it changes, until the server stops.

        Args:
            write: takes bytes.
        """
        service, told = self._service(content), None
        while True:
            at_the_end, now = self._repository.draining, self._status(service)
            if now != told:
                await write(self._response(status=now).SerializeToString())
                told = now
            if at_the_end:
                return
            await asyncio.sleep(LOOK_EVERY)

    def _service(self, content: bytes) -> str:
        try:
            name: str = self._request.FromString(content).service
        except DecodeError:
            raise not_a_message("HealthCheckRequest") from None
        return name

    def _status(self, service: str) -> int:
        if service == LIVE:
            return NOT_SERVING if self._repository.broken else SERVING
        if service in READY:
            return SERVING if self._repository.ready else NOT_SERVING
        raise RequestError(UNKNOWN, "the services are: live, ready")
