"""A real server in a process of its own, whose every answer is held to what was promised."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.deploy.serving.raw_http import PATIENCE, Answer, RawConnection, request
from tests.deploy.serving.served_bundle import MODEL, MOST, Images, Reference, some_images
from tests.served import Served
from tests.small_bundles import CLASSES

INFER = f"/v2/models/{MODEL}/infer"
LENGTH = "Inference-Header-Content-Length"
INTERNALS = ("Traceback", 'File "', "site-packages", "polarprune_deploy", "0x7f", "object at")
REFUSALS = frozenset(range(400, 500)) | {503}
TOKEN = "correct-horse-battery-staple"
SHORT_BOUNDS: dict[str, Any] = {
    "header_seconds": 1.0,
    "body_seconds": 1.5,
    "body_bytes": 1 << 20,
    "total_bytes": 3 << 20,
    "connections": 24,
}


class HostileServer(Served):
    """A server of the small bundle, and what it must answer to whom."""

    def __init__(
        self, folder: Path, *options: str, hurt: str | None = None, token: str | None = None
    ) -> None:
        """Start it.

        Args:
            folder: that holds the small bundle.
            options, hurt: of `Served`.
            token: that it wants.
        """
        super().__init__(folder, *options, hurt=hurt)
        self.reference = Reference(folder / MODEL)
        self.token = token

    def connect(self, **more: Any) -> RawConnection:
        """A connection to it."""
        return RawConnection(self.ports["http"], **more)

    def send(self, raw: bytes, method: str = "POST") -> Answer | None:
        """The first answer to some bytes on a connection of their own, checked; None for none."""
        with self.connect() as connection:
            connection.send(raw)
            answer = connection.answer(method)
        if answer is not None:
            check_kind(answer, method)
        return answer

    def answered(self, raw: bytes, method: str = "POST") -> Answer:
        """The same, where there must be one."""
        answer = self.send(raw, method)
        assert answer is not None, "no answer"
        return answer

    def refuse(self, body: bytes, headers: dict[str, str] | None = None, path: str = INFER) -> str:
        """The words with which an inference is refused.

        Raises:
            AssertionError: it is not.
        """
        answer = self.answered(request(path, body, headers=(headers or {}) | self.authorization))
        assert answer.status in REFUSALS, answer
        words: str = json.loads(answer.body)["error"]
        return f"{answer.status} {words}"

    @property
    def authorization(self) -> dict[str, str]:
        """The header that is asked for, if one is."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def good_request(self, images: Images, more: dict[str, str] | None = None) -> bytes:
        """The bytes of a request in order."""
        body, length = binary_body(images)
        headers = {LENGTH: str(length), **self.authorization, **(more or {})}
        return request(INFER, body, headers=headers)

    def check_logits(self, images: Images, answer: Answer | None) -> None:
        """Hold an answer to `good_request` to the network itself."""
        assert answer is not None, "no answer to a good request"
        assert answer.status == 200, answer
        found = read_logits(answer)
        assert found.shape == (len(images), CLASSES)
        np.testing.assert_allclose(found, self.reference(images), rtol=1e-4, atol=1e-5)

    def check_well(self, seed: int = 0) -> None:
        """It runs, has not failed, and answers a good request with the right numbers."""
        assert self.process.poll() is None, f"the server ended: {self.events()[-5:]}"
        assert not self.failures(), self.failures()
        images = some_images(seed, 1 + seed % MOST)
        self.check_logits(images, self.send(self.good_request(images)))


def binary_body(images: Images, **more: Any) -> tuple[bytes, int]:
    """Body and length of its JSON; `more` replaces what the JSON says of the input."""
    tensor = {
        "name": "input", "datatype": "FP32", "shape": list(images.shape),
        "parameters": {"binary_data_size": images.nbytes}, **more,
    }  # fmt: skip
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(document).encode()
    return head + images.tobytes(), len(head)


def json_body(images: Images, **more: Any) -> bytes:
    """The body of a request that is JSON alone; `more` replaces what it says of the input."""
    tensor = {"name": "input", "datatype": "FP32", "shape": list(images.shape),
              "data": images.reshape(-1).tolist(), **more}  # fmt: skip
    return json.dumps({"inputs": [tensor]}).encode()


def read_logits(answer: Answer) -> Images:
    """The one output of an answer, binary or not."""
    length = answer.headers.get(LENGTH.lower())
    document = json.loads(answer.body[: None if length is None else int(length)])
    (output,) = document["outputs"]
    assert (output["name"], output["datatype"]) == ("logits", "FP32")
    if length is None:
        return np.array(output["data"], np.float32).reshape(output["shape"])
    blob = answer.body[int(length) :]
    assert output["parameters"]["binary_data_size"] == len(blob)
    return np.frombuffer(blob, "<f4").reshape(output["shape"])


def check_kind(answer: Answer, method: str = "POST") -> None:
    """2xx, 4xx or 503; errors in one line of JSON, without what is nobody's business."""
    assert 200 <= answer.status < 300 or answer.status in REFUSALS, answer
    if answer.status < 300 or method == "HEAD":
        return
    assert answer.headers["content-type"] == "application/json", answer
    document = json.loads(answer.body)
    assert list(document) in (["error"], ["live"], ["ready"], ["name", "ready"]), answer
    words = document.get("error", "-")
    assert words, answer
    assert words.isprintable(), answer
    assert len(words) < 1000, answer
    assert not [word for word in INTERNALS if word in words], answer


def answer_on(connection: RawConnection) -> Answer:
    """The next one on a connection, where there must be one, checked."""
    answer = connection.answer()
    assert answer is not None, "no answer"
    check_kind(answer)
    return answer


def wait_until(condition: Any, seconds: float = PATIENCE) -> None:
    """Until it holds.

    Raises:
        AssertionError: it never does.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
