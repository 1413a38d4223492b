"""An answer held to what must become of its request."""

import json
import re
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.hostile_input.mutations import CLASSIFY
from benchmarks.hostile_input.oracle import Floats, Refused, Wanted, decoded_image, judge
from benchmarks.hostile_input.requests_sent import LENGTH, Sent
from tests.deploy.serving.raw_http import Answer

RIGHT, REFUSED, BUSY, UNEXPECTED = "right", "refused", "busy", "unexpected"
STRICTER = "refused, though nothing here says why"
GONE = "no answer, as the request was never whole"
MAY_BE_STRICTER = ("head", "damaged image")
"""Kinds that are known here by halves: a refusal is always right."""
MAY_GO_UNANSWERED = ("head", "stated")
INTERNALS = re.compile(r"Traceback|File \"|site-packages|polarprune_deploy|0x[0-9a-f]{6}|\.py\b")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@dataclass(frozen=True)
class Verdict:
    """One of this module's words, and why, where it is not as it must be."""

    word: str
    why: str = ""


def give_verdict(
    sent: Sent, answer: Answer | None, session: onnxruntime.InferenceSession
) -> Verdict:
    """What to think of an answer; None is none."""
    if answer is None:
        if sent.kind in MAY_GO_UNANSWERED:
            return Verdict(GONE)
        return Verdict(UNEXPECTED, "no answer")
    wrong = _manners(answer, sent.method)
    if wrong:
        return Verdict(UNEXPECTED, wrong)
    if sent.path.startswith(CLASSIFY) and sent.raw is None:
        return _of_image(sent, answer, session)
    try:
        wanted = judge(sent)
    except Refused as refused:
        if answer.status >= 400:
            return Verdict(REFUSED)
        return Verdict(UNEXPECTED, f"answered with {answer.status}, though: {refused}")
    return _of_inference(sent, answer, wanted, session)


def _manners(answer: Answer, method: bytes) -> str:
    """What is wrong with an answer whatever was asked."""
    if not (200 <= answer.status < 300 or 400 <= answer.status < 500 or answer.status == 503):
        return f"status {answer.status}"
    if answer.status < 300 or method == b"HEAD":
        return ""
    try:
        document = json.loads(answer.body)
        words = document["error"]
    except (ValueError, KeyError, TypeError):
        return "a refusal without words"
    if list(document) != ["error"] or not words or not words.isprintable() or len(words) > 1000:
        return "a refusal in other than one line"
    return "a refusal that tells internals" if INTERNALS.search(words) else ""


def _of_inference(
    sent: Sent, answer: Answer, wanted: Wanted, session: onnxruntime.InferenceSession
) -> Verdict:
    assert wanted.images is not None
    logits = run(session, wanted.images)
    unspeakable = not wanted.binary and not np.isfinite(logits).all()
    if answer.status >= 400:
        if unspeakable or (wanted.may_be_late and answer.status == 503):
            return Verdict(REFUSED)
        if answer.status == 503:
            return Verdict(BUSY)
        if sent.kind in MAY_BE_STRICTER or not wanted.tame:
            return Verdict(STRICTER)
        return Verdict(UNEXPECTED, "refused, though in order")
    try:
        found, document = read_answer(answer, wanted.binary)
    except (ValueError, KeyError, TypeError) as error:
        return Verdict(UNEXPECTED, f"an answer that cannot be read: {type(error).__name__}")
    if document.get("id", "") != wanted.id:
        return Verdict(UNEXPECTED, "another id")
    if (document["model_name"], document["model_version"]) != ("small", "1"):
        return Verdict(UNEXPECTED, "another model")
    if found.shape != logits.shape:
        return Verdict(UNEXPECTED, f"shape {found.shape} for {logits.shape}")
    if wanted.tame and not np.allclose(found, logits, **TOLERANCE):
        return Verdict(UNEXPECTED, "other numbers")
    return Verdict(RIGHT)


def _of_image(sent: Sent, answer: Answer, session: onnxruntime.InferenceSession) -> Verdict:
    image = decoded_image(sent.body)
    if answer.status >= 400:
        if sent.kind in MAY_BE_STRICTER or image is None:
            return Verdict(REFUSED)
        return Verdict(BUSY) if answer.status == 503 else Verdict(UNEXPECTED, "refused a picture")
    classes = json.loads(answer.body)["classes"]
    total = sum(entry["probability"] for entry in classes)
    if not 0 < total <= 1 + 1e-6 or len({entry["index"] for entry in classes}) != len(classes):
        return Verdict(UNEXPECTED, "no probabilities")
    if image is None:
        return Verdict(STRICTER if sent.kind == "image" else RIGHT)
    scores = run(session, image)[0].astype(np.float64)
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    for entry in classes:
        close = abs(shares[entry["index"]] - entry["probability"]) < 1e-4
        if not close or entry["name"] != "abc"[entry["index"]]:
            return Verdict(UNEXPECTED, "other probabilities")
    return Verdict(RIGHT)


def read_answer(answer: Answer, binary: bool) -> tuple[NDArray[np.float64], dict[str, object]]:
    """The logits and the document of an answer.

    Raises:
        ValueError, KeyError, TypeError: it is not as the protocol says.
    """
    length = answer.headers.get(LENGTH.decode().lower())
    if (length is not None) != binary:
        raise ValueError("binary, or not")
    document = json.loads(answer.body if length is None else answer.body[: int(length)])
    (output,) = document["outputs"]
    if (output["name"], output["datatype"]) != ("logits", "FP32"):
        raise ValueError("another output")
    if length is None:
        numbers = np.array(output["data"], np.float64)
    else:
        raw = answer.body[int(length) :]
        if output["parameters"]["binary_data_size"] != len(raw):
            raise ValueError("another size")
        numbers = np.frombuffer(raw, "<f4").astype(np.float64)
    return numbers.reshape(output["shape"]), document


def run(session: onnxruntime.InferenceSession, images: Floats) -> Floats:
    """The logits of images, in the network itself."""
    (logits,) = session.run(["logits"], {"input": np.ascontiguousarray(images)})
    return np.asarray(logits)
