"""What a server says about a model of its: names, datatypes and shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote as quote_path

from polarprune.errors import ConfigError, ServerError, quote
from polarprune.files.strict_json import parse_strict
from polarprune.files.typed_json import build_known
from polarprune_deploy.load.endpoint import LARGEST_DOCUMENT, Endpoint
from polarprune_deploy.load.random_tensors import check_datatype

_SHOWN = 5


@dataclass(frozen=True)
class ServedTensor:
    """One input or output; a free side is -1 in `shape`, the batch's included."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ServedModel:
    """A model's metadata, as far as load needs it."""

    name: str
    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]

    @property
    def path(self) -> str:
        """Of the model, below the server's prefix."""
        return _path(self.name)


def read_model(endpoint: Endpoint, name: str | None = None) -> ServedModel:
    """Ask a server for a model's metadata.

    Args:
        name: of the model; None takes the only one that is served.

    Raises:
        ServerError: nobody answers, or otherwise than the protocol says; nothing is ready.
        ConfigError: no model of this name, several and no name, or tensors that are no numbers.
    """
    if name is None:
        name = _only_model(endpoint)
    status, document = endpoint.document("GET", _path(name))
    if status == 404:
        raise ConfigError(f"{endpoint.url} serves no model {quote(name)}{_instead(endpoint)}")
    check_status(endpoint, f"GET {_path(name)}", status, document)
    try:
        model: ServedModel = build_known(ServedModel, document)
        _check_shapes([*model.inputs, *model.outputs])
    except ValueError as error:
        raise ServerError(
            f"{endpoint.url} answers GET {_path(name)} otherwise than the Open Inference Protocol "
            f"says: {error}"
        ) from None
    if not model.inputs or not model.outputs:
        raise ServerError(f"the model {quote(name)} of {endpoint.url} has no inputs or no outputs")
    for tensor in (*model.inputs, *model.outputs):
        check_datatype(tensor.datatype, f"{tensor.name} of {model.name}")
    # Asked for by this name, whatever the server calls it.
    return ServedModel(name, model.inputs, model.outputs)


def check_status(endpoint: Endpoint, asked: str, status: int, document: Any) -> None:
    """Whatever is no 200 ends it, with what the server said about it.

    Raises:
        ServerError: the status and the server's own words.
    """
    if status in (401, 403):
        raise ServerError(
            f"{endpoint.url} answers {asked} with status {status}: it wants a token that it knows, "
            "--token-file"
        )
    if status != 200:
        raise ServerError(
            f"{endpoint.url} answers {asked} with status {status}{words_of(document)}"
        )


def words_of(document: Any) -> str:
    """The server's own words about an error, quoted; empty where it has none.

    Args:
        document: the body of its answer, as JSON or as the bytes that came.
    """
    if isinstance(document, bytes):
        try:
            document = parse_strict(document, LARGEST_DOCUMENT)
        except ValueError:
            document = document.decode(errors="replace")
    words = document.get("error") if isinstance(document, dict) else document
    return f": {quote(words, 200)}" if isinstance(words, str) and words.strip() else ""


def _path(name: str) -> str:
    return f"/v2/models/{quote_path(name, safe='')}"


def _check_shapes(tensors: Sequence[ServedTensor]) -> None:
    for tensor in tensors:
        if not tensor.shape or any(side < -1 or side == 0 for side in tensor.shape):
            raise ValueError(f"{quote(tensor.name)} has the shape {list(tensor.shape)}")


def _only_model(endpoint: Endpoint) -> str:
    names = _names(endpoint)
    if names is None:
        raise ConfigError(f"{endpoint.url} does not say which models it serves; give --model")
    if not names:
        raise ServerError(f"{endpoint.url} has no model that is ready; is it still loading?")
    if len(names) > 1:
        raise ConfigError(f"{endpoint.url} serves {len(names)} models; give --model{_list(names)}")
    return names[0]


def _instead(endpoint: Endpoint) -> str:
    names = _names(endpoint)
    return "" if not names else f"; it has{_list(names)}"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "".join((": " if names else "", ", ".join(map(quote, names[:_SHOWN])), more))


def _names(endpoint: Endpoint) -> list[str] | None:
    """Of the models that are ready: Triton's repository index, or KServe's list; None: neither."""
    status, index = endpoint.document("POST", "/v2/repository/index")
    if status == 200 and isinstance(index, list):
        rows = [row for row in index if isinstance(row, dict)]
        ready = [row.get("name") for row in rows if row.get("state", "READY") == "READY"]
        return list(dict.fromkeys(name for name in ready if isinstance(name, str)))
    status, listed = endpoint.document("GET", "/v2/models")
    found = listed.get("models") if status == 200 and isinstance(listed, dict) else None
    return None if not isinstance(found, list) else [n for n in found if isinstance(n, str)]
