"""Requests whose right answers are known: onnxruntime computed them alone, before any server ran.

Nothing here uses the server's own code, nor that of its load client, to read an answer.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polarprune.manifest import Manifest, read_manifest, read_verified
from polarprune_deploy.load.http_answers import HttpAnswer
from polarprune_export.onnx_session import open_session

TOLERANCE = 1e-4
"""Of the largest value of an answer: another batch size may add up in another order."""
STEP = 64
"""Images are whole multiples of 1/64, so that JSON says them exactly and in few digits."""

Images = NDArray[np.float32]


class WrongAnswer(Exception):
    """An answer with status 200 that is not the right one; the message says what is wrong."""


@dataclass(frozen=True, eq=False)
class Case:
    """One request's content and its right answer.

    Attributes:
        number: among the cases; the request's id is made of it.
        images: (n, channels, height, width).
        outputs: by name, batch first.
    """

    number: int
    images: Images
    outputs: dict[str, NDArray[np.float32]]

    @property
    def id(self) -> str:
        """The request's id, which an answer has to echo."""
        return f"case-{self.number}"


@dataclass(frozen=True, eq=False)
class Known:
    """A bundle and what it must answer."""

    manifest: Manifest
    cases: tuple[Case, ...]

    @property
    def input_name(self) -> str:
        """Of the only input."""
        return self.manifest.inputs[0].name

    def alike(self) -> int:
        """Pairs of cases of one size that could be mixed up unseen; there must be none."""
        pairs = [
            (one, other)
            for index, one in enumerate(self.cases)
            for other in self.cases[index + 1 :]
            if len(one.images) == len(other.images)
        ]
        return sum(deviation(one, other.outputs) <= TOLERANCE for one, other in pairs)


def compute_known(bundle: Path, images: list[Images]) -> Known:
    """Run onnxruntime alone, one request after the other, on one thread."""
    manifest = read_manifest(bundle)
    session = open_session(read_verified(bundle, manifest, "model.onnx"), threads=1)
    names = [output.name for output in session.get_outputs()]
    (taken,) = session.get_inputs()
    cases = [
        Case(number, each, dict(zip(names, session.run(None, {taken.name: each}), strict=True)))
        for number, each in enumerate(images)
    ]
    return Known(manifest, tuple(cases))


def draw_images(manifest: Manifest, sizes: list[int], seed: int) -> list[Images]:
    """Noise whose channels have means of their own, so that a network tells images apart."""
    generator = np.random.default_rng(seed)
    sides = manifest.inputs[0].shape[1:]
    drawn = []
    for size in sizes:
        means = generator.standard_normal((size, sides[0], 1, 1))
        values = means + generator.standard_normal((size, *sides))
        drawn.append((np.rint(values * STEP) / STEP).astype(np.float32))
    return drawn


def read_outputs(answer: HttpAnswer) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """The JSON of an answer and its outputs.

    Raises:
        WrongAnswer: it is not in the protocol's form.
    """
    length = len(answer.body) if answer.json_length is None else answer.json_length
    try:
        document = json.loads(answer.body[:length])
        rest, outputs = answer.body[length:], {}
        for output in document["outputs"]:
            if output["datatype"] != "FP32":
                raise WrongAnswer(f"datatype {output['datatype']}")
            if "data" in output:
                values = np.asarray(output["data"], np.float32)
            else:
                size = output["parameters"]["binary_data_size"]
                values, rest = np.frombuffer(rest[:size], "<f4"), rest[size:]
            outputs[output["name"]] = values.reshape(output["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise WrongAnswer(f"not as the protocol says ({type(error).__name__}: {error})") from None
    if rest:
        raise WrongAnswer(f"{len(rest)} bytes behind its outputs")
    return document, outputs


def deviation(case: Case, outputs: dict[str, NDArray[np.float32]]) -> float:
    """The largest difference from the right answer, as a share of its largest value.

    Infinite where names, shapes or finiteness differ.
    """
    if outputs.keys() != case.outputs.keys():
        return float("inf")
    worst = 0.0
    for name, right in case.outputs.items():
        found = outputs[name]
        if found.shape != right.shape or not np.isfinite(found).all():
            return float("inf")
        worst = max(worst, float(np.max(np.abs(found - right)) / np.max(np.abs(right))))
    return worst


def check_answer(case: Case, answer: HttpAnswer) -> float:
    """How far off a right answer is.

    Raises:
        WrongAnswer: it is not the right one.
    """
    document, outputs = read_outputs(answer)
    if document.get("id") != case.id:
        raise WrongAnswer(f"the id {document.get('id')!r} in the answer to {case.id!r}")
    return check_outputs(case, outputs)


def check_outputs(case: Case, outputs: dict[str, NDArray[np.float32]]) -> float:
    """The same for outputs alone.

    Raises:
        WrongAnswer: they are not the right ones.
    """
    off = deviation(case, outputs)
    if not off <= TOLERANCE:
        raise WrongAnswer(f"off by {off:.3g} of the largest value in the answer to {case.id}")
    return off
