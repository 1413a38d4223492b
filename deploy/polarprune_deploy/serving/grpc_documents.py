"""The methods that are not inference: health, metadata, configuration, statistics, index.

What they say is `model_documents`' JSON, put into protobuf's messages.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

import polarprune
from polarprune_deploy.fleet.triton_protocol import message_class, service_methods
from polarprune_deploy.serving.grpc_calls import Answer
from polarprune_deploy.serving.grpc_wire import not_a_message
from polarprune_deploy.serving.model_documents import (
    NO_CONTROL,
    config_document,
    metadata_document,
    server_document,
    statistics_documents,
)
from polarprune_deploy.serving.repository import READY, Repository
from polarprune_deploy.serving.request_errors import (
    BAD,
    UNSUPPORTED,
    RequestError,
)

OPEN_METHODS = frozenset({"ServerLive", "ServerReady"})
"""Without a token."""
INFERENCE = frozenset({"ModelInfer", "ModelStreamInfer"})
CONTROL = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
Document = Callable[[Repository, Any], dict[str, Any]]


def document_answers(repository: Repository) -> dict[str, Answer]:
    """By name, every method of the service but inference; those that are not served say so."""
    answers = {}
    for method in service_methods():
        if method.name in INFERENCE:
            continue
        document = DOCUMENTS.get(method.name)
        if document is not None:
            answers[method.name] = _answer(
                repository, document,
                message_class(method.input_type.name), message_class(method.output_type.name),
            )  # fmt: skip
        elif method.name in CONTROL:
            answers[method.name] = _refusal(RequestError(BAD, NO_CONTROL))
        else:
            answers[method.name] = _refusal(
                RequestError(UNSUPPORTED, f"{method.name} is not served here")
            )
    return answers


def _answer(repository: Repository, document: Document, asked: Any, given: Any) -> Answer:
    async def answer(content: bytes, _: float | None) -> Any:
        try:
            request = asked.FromString(content)
        except DecodeError:
            raise not_a_message(asked.DESCRIPTOR.name) from None
        return ParseDict(document(repository, request), given())

    return answer


def _refusal(error: RequestError) -> Answer:
    async def answer(_: bytes, __: float | None) -> Any:
        raise RequestError(error.kind, str(error))

    return answer


def _model_ready(repository: Repository, request: Any) -> dict[str, Any]:
    """No model of that name is not ready, as Triton says, so that who waits for one can ask."""
    try:
        repository.get(request.name, request.version)
    except RequestError:
        return {"ready": False}
    return {"ready": not repository.leaving and not repository.broken}


def _config(repository: Repository, request: Any) -> dict[str, Any]:
    return {"config": config_document(repository.get(request.name, request.version).facts)}


def _statistics(repository: Repository, request: Any) -> dict[str, Any]:
    return {"model_stats": statistics_documents(repository, request.name, request.version)}


def _index(repository: Repository, request: Any) -> dict[str, Any]:
    entries = [entry for entry in repository.index() if entry.state == READY or not request.ready]
    return {"models": [vars(entry) for entry in entries]}


DOCUMENTS: Mapping[str, Document] = MappingProxyType(
    {
        "ServerLive": lambda repository, _: {"live": not repository.broken},
        "ServerReady": lambda repository, _: {"ready": repository.ready},
        "ModelReady": _model_ready,
        "ServerMetadata": lambda *_: server_document(polarprune.__version__),
        "ModelMetadata": lambda repository, request: metadata_document(
            repository.get(request.name, request.version).facts
        ),
        "ModelConfig": _config,
        "ModelStatistics": _statistics,
        "RepositoryIndex": _index,
    }
)
