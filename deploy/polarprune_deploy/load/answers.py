"""Is an answer right? The tensors in it, and how far they are from the first ones.

The first answer to each request is got before the load, one by one, and looked at closely. Under
load the same bytes are the same answer; what is not the same bytes is read and compared.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polarprune.errors import quote
from polarprune_deploy.load.http_answers import HttpAnswer
from polarprune_deploy.load.model_metadata import ServedModel, ServedTensor
from polarprune_deploy.serving.request_errors import RequestError
from polarprune_deploy.serving.tensors import from_raw

SAME_ANSWER = 0.05
"""Of the largest value. Another batch may mean another kernel, in bf16 at 4 %; see side_checks."""

Tensors = dict[str, NDArray[np.float64]]


class UnsoundAnswer(Exception):
    """An answer with status 200 that does not hold what it should; the message says what."""


def read_tensors(answer: HttpAnswer, model: ServedModel, batch: int) -> Tensors:
    """The outputs in an answer, flat.

    Raises:
        UnsoundAnswer: it is not what the protocol and the model's metadata say.
    """
    length = len(answer.body) if answer.json_length is None else answer.json_length
    try:
        document = json.loads(answer.body[:length])
    except ValueError:  # UnicodeDecodeError too
        raise UnsoundAnswer(f"no JSON: {quote(answer.body[:40])}") from None
    outputs = document.get("outputs") if isinstance(document, dict) else None
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise UnsoundAnswer("JSON without outputs")
    specs = {spec.name: spec for spec in model.outputs}
    rest, found = memoryview(answer.body)[length:], {}
    for output in outputs:
        spec = specs.pop(output.get("name"), None) if _is_text(output.get("name")) else None
        if spec is None:
            raise UnsoundAnswer(f"an output {quote(output.get('name'))} that the model has not")
        count = _count(output, spec, batch)
        size = _binary_size(output)
        if size is None:
            found[spec.name] = _listed(output.get("data"), count, spec.name)
            continue
        found[spec.name] = _raw(rest[:size], spec, count, size)
        rest = rest[size:]
    if specs or len(rest):
        what = f"no output {quote(next(iter(specs)))}" if specs else "bytes behind its outputs"
        raise UnsoundAnswer(what)
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _count(output: dict[str, Any], spec: ServedTensor, batch: int) -> int:
    """How many values, once datatype and shape were found to be the model's."""
    shape = output.get("shape")
    sides = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
    wanted = [batch if spec.shape[0] < 0 else spec.shape[0], *spec.shape[1:]]
    if output.get("datatype") != spec.datatype or not sides or len(shape or ()) != len(wanted):
        described = quote([output.get("datatype"), shape])
        raise UnsoundAnswer(f"output {quote(spec.name)} is {described}, not as in the metadata")
    if any(w not in (-1, s) for w, s in zip(wanted, shape or (), strict=True)):
        raise UnsoundAnswer(f"output {quote(spec.name)} has the shape {shape}, not {wanted}")
    return math.prod(shape or ())


def _binary_size(output: dict[str, Any]) -> int | None:
    parameters = output.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    return size if type(size) is int and size >= 0 else None


def _raw(raw: memoryview, spec: ServedTensor, count: int, size: int) -> NDArray[np.float64]:
    if len(raw) != size:
        raise UnsoundAnswer(f"output {quote(spec.name)} ends before its {size} bytes")
    try:
        return from_raw(raw, spec.datatype, (count,), spec.name).astype(np.float64)
    except RequestError:
        raise UnsoundAnswer(
            f"output {quote(spec.name)} has {size} bytes for {count} values of {spec.datatype}"
        ) from None


def _listed(data: Any, count: int, name: str) -> NDArray[np.float64]:
    try:
        values = np.asarray(data, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.size != count or not isinstance(data, list):
        raise UnsoundAnswer(f"output {quote(name)} does not hold its {count} numbers")
    return values


class FirstAnswers:
    """The first answer to each request of a ring, and what is the same as it."""

    def __init__(self, answers: Sequence[HttpAnswer], model: ServedModel, batch: int) -> None:
        """Read all of them.

        Raises:
            UnsoundAnswer: one is no answer, or holds what is no finite number.
        """
        self._model, self._batch = model, batch
        self._bodies = [answer.body for answer in answers]
        self._tensors = [read_tensors(answer, model, batch) for answer in answers]
        for tensors in self._tensors:
            for name, values in tensors.items():
                if not np.all(np.isfinite(values)):
                    raise UnsoundAnswer(f"output {quote(name)} is not finite on random inputs")
        self._allowed = [
            {name: SAME_ANSWER * float(np.max(np.abs(v), initial=0.0)) for name, v in each.items()}
            for each in self._tensors
        ]

    def same(self, request: int, answer: HttpAnswer) -> bool:
        """Whether an answer with status 200 is the first answer to this request once more."""
        if answer.body == self._bodies[request]:
            return True
        try:
            got = read_tensors(answer, self._model, self._batch)
        except UnsoundAnswer:
            return False
        return self._near(request, got)

    def alike(self) -> int:
        """Pairs of requests whose answers are so alike that a mix-up would go unseen."""
        count = len(self._tensors)
        return sum(
            self._near(one, self._tensors[other])
            for one in range(count)
            for other in range(one + 1, count)
        )

    def _near(self, request: int, got: Tensors) -> bool:
        first, allowed = self._tensors[request], self._allowed[request]
        return all(
            values.shape == got[name].shape
            and bool(np.max(np.abs(got[name] - values), initial=0.0) <= allowed[name])
            for name, values in first.items()
        )
