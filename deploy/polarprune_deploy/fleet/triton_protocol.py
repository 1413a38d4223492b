"""Triton's protobuf messages, the Open Inference Protocol's among them, in a pool of their own.

Generated code would register the same symbols in the process's default pool as tritonclient does,
and protobuf refuses that; it would also demand one protobuf release. So the description itself is
kept (`triton_protocol.binpb`) and the classes are made from it. Its sources are grpc_service.proto
and model_config.proto of github.com/triton-inference-server/common (BSD-3-Clause, NVIDIA); a test
holds it against tritonclient's own.
"""

from functools import cache
from importlib.resources import files
from typing import Any

from polarprune.optional_packages import import_package

INSTALL = "pip install 'polarprune[serve]'"
SERVICE = "inference.GRPCInferenceService"
DESCRIPTION = "triton_protocol.binpb"


def message_class(name: str) -> Any:
    """The class of one message.

    Args:
        name: as in the .proto file, such as "ModelInferRequest" or "ModelConfig".

    Raises:
        KeyError: there is none of this name.
        BackendUnavailable: protobuf is not installed.
    """
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


def service_methods() -> list[Any]:
    """The method descriptors of `SERVICE`: name, input_type, output_type, server_streaming."""
    return list(_pool().FindServiceByName(SERVICE).methods)


@cache
def _pool() -> Any:
    descriptor_pb2 = import_package("google.protobuf.descriptor_pb2", INSTALL)
    descriptor_pool = import_package("google.protobuf.descriptor_pool", INSTALL)
    described = descriptor_pb2.FileDescriptorSet.FromString(
        (files("polarprune_deploy.fleet") / DESCRIPTION).read_bytes()
    )
    pool = descriptor_pool.DescriptorPool()
    for file in described.file:
        pool.Add(file)
    return pool
