"""Clients that go on while the server changes, and know which bundle each answer is of."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.serving.asking import Broken, Lines, NotConnected
from benchmarks.serving.infer_messages import LENGTH, http_message
from benchmarks.serving.known_answers import TOLERANCE, Known, WrongAnswer, deviation, read_outputs
from polarprune_deploy.load.http_answers import HttpAnswer

PATIENCE_SECONDS = 60.0
AGAIN_SECONDS = 0.1
"""After a refusal, so that a server that is down is not hammered."""
REFUSED, BROKEN, WRONG, UNAVAILABLE = "no connection", "connection broken", "wrong", "503"
MOST_WORDS = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes:
        sent, done: seconds of `time.monotonic`.
        outcome: the label of the bundle whose answer it is, whole and right; or WRONG; or
            REFUSED, BROKEN; or the status.
        version: that the answer names, of right ones.
    """

    sent: float
    done: float
    outcome: str
    version: str = ""

    @property
    def ms(self) -> float:
        """From sent to answered."""
        return (self.done - self.sent) * 1e3


class Clients:
    """So many, each with one request on its way; every request is another one."""

    def __init__(
        self, url: str, model: str, known: Mapping[str, Known], count: int, seed: int,
        pause: float = 0.0,
    ) -> None:  # fmt: skip
        """Make the requests.

        Args:
            known: by label; the same images for all labels.
            pause: seconds between an answer and the next request, on average.
        """
        self._lines, self._path = Lines(url), f"/v2/models/{model}/infer"
        self._known, self._count, self._pause = known, count, pause
        self._random = random.Random(seed)
        first = next(iter(known.values()))
        self._raw = [case.images.astype("<f4").tobytes() for case in first.cases]
        self._shapes = [list(case.images.shape) for case in first.cases]
        self._name = first.input_name
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._number = 0
        self.samples: list[Sample] = []
        self.words: Counter[str] = Counter()
        """What went wrong, in words."""

    async def __aenter__(self) -> "Clients":
        """Begin."""
        self._tasks = [asyncio.create_task(self._ask_on()) for _ in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait for what is on its way."""
        self._stop.set()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._lines.close()
        for result in results:
            if isinstance(result, BaseException):
                raise result  # a mistake of the study's own

    async def _ask_on(self) -> None:
        while not self._stop.is_set():
            sample = await self._ask()
            self.samples.append(sample)
            if sample.outcome in (REFUSED, BROKEN) or sample.outcome.isdigit():
                await asyncio.sleep(AGAIN_SECONDS)
            elif self._pause:
                await asyncio.sleep(self._random.expovariate(1 / self._pause))

    async def _ask(self) -> Sample:
        self._number += 1
        number, case = self._number, self._random.randrange(len(self._raw))
        request_id = f"request-{number}"
        message = self._message(case, request_id)
        sent = time.monotonic()
        try:
            answer = await self._lines.ask(message, PATIENCE_SECONDS)
        except NotConnected:
            return Sample(sent, time.monotonic(), REFUSED)
        except Broken as error:
            self._note(str(error))
            return Sample(sent, time.monotonic(), BROKEN)
        done = time.monotonic()
        if answer.status != 200:
            self._note(f"{answer.status}: {answer.body[:120].decode('utf-8', 'replace')}")
            return Sample(sent, done, str(answer.status))
        try:
            label, version = self._whose(case, request_id, answer)
        except WrongAnswer as error:
            self._note(f"wrong: {error}")
            return Sample(sent, done, WRONG)
        return Sample(sent, done, label, version)

    def _message(self, case: int, request_id: str) -> bytes:
        raw = self._raw[case]
        described = {
            "name": self._name, "shape": self._shapes[case], "datatype": "FP32",
            "parameters": {"binary_data_size": len(raw)},
        }  # fmt: skip
        head = json.dumps(
            {
                "id": request_id, "inputs": [described],
                "parameters": {"binary_data_output": True},
            }
        ).encode()  # fmt: skip
        return http_message(self._path, head + raw, f"{LENGTH}: {len(head)}")

    def _whose(self, case: int, request_id: str, answer: HttpAnswer) -> tuple[str, str]:
        """The label of the one bundle that answers this request so, and the version it names."""
        document, outputs = read_outputs(answer)
        if document.get("id") != request_id:
            raise WrongAnswer(f"the id {document.get('id')!r} in the answer to {request_id!r}")
        off = {label: deviation(k.cases[case], outputs) for label, k in self._known.items()}
        labels = [label for label, share in off.items() if share <= TOLERANCE]
        if len(labels) != 1:
            raise WrongAnswer(f"off by {off}")
        return labels[0], str(document.get("model_version"))

    def _note(self, words: str) -> None:
        if words in self.words or len(self.words) < MOST_WORDS:
            self.words[words] += 1


def count_outcomes(samples: Sequence[Sample]) -> dict[str, int]:
    """How many ended how."""
    return dict(sorted(Counter(sample.outcome for sample in samples).items()))


def latencies(samples: Sequence[Sample]) -> dict[str, float | int]:
    """Milliseconds of those that were answered rightly."""
    found = [s.ms for s in samples if s.version]
    if not found:
        return {"n": 0}
    values = np.quantile(found, [0.5, 0.99, 1.0])
    names = ("p50", "p99", "max")
    return {"n": len(found)} | {
        name: round(float(value), 3) for name, value in zip(names, values, strict=True)
    }


async def wait_until(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Wait for a condition that is cheap to ask.

    Returns:
        Seconds that it took.

    Raises:
        TimeoutError: it does not come true.
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(0.005)
    return time.monotonic() - start
