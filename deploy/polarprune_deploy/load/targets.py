"""A server that was looked at closely before any load: its model, the requests, right answers."""

from dataclasses import dataclass, replace

from polarprune.errors import ServerError
from polarprune_deploy.load.answers import FirstAnswers, UnsoundAnswer
from polarprune_deploy.load.connections import Dialer
from polarprune_deploy.load.endpoint import Endpoint
from polarprune_deploy.load.first_look import ask_each
from polarprune_deploy.load.model_metadata import ServedModel, check_status
from polarprune_deploy.load.request_ring import RequestKind, default_batch, make_ring
from polarprune_deploy.load.traffic import run_loop
from polarprune_deploy.serving.tensors import HALF_WITHOUT_JSON

_NOT_UNDERSTOOD = (400, 415, 422, 501)


@dataclass(frozen=True)
class Target:
    """What a load needs: a way to the server, requests, and the right answer to each."""

    dialer: Dialer
    model: ServedModel
    kind: RequestKind
    ring: tuple[bytes, ...]
    first: FirstAnswers

    @property
    def url(self) -> str:
        """Of the server."""
        return self.dialer.endpoint.url


def look_at(
    endpoint: Endpoint,
    model: ServedModel,
    *,
    batch: int | None,
    image_size: int | None = None,
    seed: int = 0,
) -> Target:
    """Send each request once, one by one, and keep the answers.

    Where the server takes no binary tensors, the numbers go as JSON.

    Args:
        endpoint: the server.
        model: one of its models.
        batch: images in a request; None takes what the model is fixed to, else one.
        image_size: of free sides of images, pixels.
        seed: decides the numbers.

    Raises:
        ConfigError: the model does not take such a request.
        ServerError: nobody answers, or otherwise than the protocol says.
    """
    dialer = Dialer(endpoint)
    kind = RequestKind(default_batch(model) if batch is None else batch, image_size, True, seed)
    ring = make_ring(endpoint, model, kind)
    answers = run_loop(ask_each(dialer, ring), exact_timers=False)
    if answers[-1].status in _NOT_UNDERSTOOD and _as_json(model):
        plain = replace(kind, binary=False)
        plain_ring = make_ring(endpoint, model, plain)
        plain_answers = run_loop(ask_each(dialer, plain_ring), exact_timers=False)
        if plain_answers[-1].status == 200:  # else it was not the encoding: the first words count
            kind, ring, answers = plain, plain_ring, plain_answers
    last = answers[-1]
    check_status(endpoint, f"POST {model.path}/infer", last.status, last.body)
    try:
        first = FirstAnswers(answers, model, kind.batch)
    except UnsoundAnswer as error:
        raise ServerError(
            f"{endpoint.url} answers POST {model.path}/infer otherwise than the Open Inference "
            f"Protocol says: {error}"
        ) from None
    return Target(dialer, model, kind, ring, first)


def _as_json(model: ServedModel) -> bool:
    """Whether the inputs can be numbers in JSON: 16-bit floats only go as bytes."""
    return all(tensor.datatype not in HALF_WITHOUT_JSON for tensor in model.inputs)
