"""The soak's client: requests of all kinds on a schedule, and what came of each."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.serving.asking import Broken, Lines, NotConnected
from benchmarks.serving.grpc_asking import GrpcAsking, GrpcRefusal
from benchmarks.serving.hostile_requests import Hostile
from benchmarks.serving.image_messages import Picture, check_classes
from benchmarks.serving.infer_messages import (
    LENGTH,
    binary_message,
    binary_parts,
    chunked_message,
    gzip_message,
    http_message,
    json_body,
)
from benchmarks.serving.known_answers import Case, Known, WrongAnswer, check_answer, check_outputs
from polarprune_deploy.load.http_answers import HttpAnswer

PATIENCE_SECONDS = 60.0
HOSTILE_SHARE = 0.05
RARE = 0.1
LONGEST_WAIT_TO_LEAVE = 0.03
MOST_PROBLEMS = 50
WEIGHTS = {
    "binary": 45, "json": 18, "gzip binary": 6, "gzip json": 4, "chunked": 4,
    "new connection": 8, "grpc": 15, "classify": 10,
}  # fmt: skip
"""How often each kind of sound request is sent, in relation to the others."""
HTTP_FORMS = ("binary", "json", "gzip binary", "gzip json", "chunked")


@dataclass
class Tally:
    """What came of the requests of one kind.

    Attributes:
        right: the whole right answer; of hostile ones: refused as they should be.
        wrong: status 200, and another answer, or one where a refusal was due.
        lost: no whole answer.
        statuses: other statuses than the one that was due.
        images: in the right answers.
    """

    sent: int = 0
    right: int = 0
    wrong: int = 0
    lost: int = 0
    images: int = 0
    statuses: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        return {**vars(self), "statuses": dict(self.statuses)}


class SoakLoad:
    """Everything that is sent, and counted."""

    def __init__(
        self, url: str, model: str, known: Known, hostile: list[Hostile], seed: int,
        *, grpc: GrpcAsking | None, pictures: list[Picture],
    ) -> None:  # fmt: skip
        """Make the requests.

        Args:
            model: the name under which the bundle is served.
            grpc: None where the server has no gRPC.
            pictures: to be classified; none where the server takes none.
        """
        self._lines, self._known, self._hostile = Lines(url), known, hostile
        self._model, self._grpc, self._pictures = model, grpc, pictures
        self._path = f"/v2/models/{model}/infer"
        self._random = random.Random(seed)
        self._made = {
            (form, case.number): self._make(form, case)
            for form in HTTP_FORMS
            for case in self.cases
        }
        self.good: defaultdict[str, Tally] = defaultdict(Tally)
        self.bad: defaultdict[str, Tally] = defaultdict(Tally)
        self.latencies: list[float] = []
        """Seconds from due to answered, of right answers."""
        self.largest_deviation = 0.0
        self.problems: list[str] = []
        self.counted: Counter[str] = Counter()
        """Of hostile requests: how often the server should have counted what."""
        left_out = {"grpc": grpc is None, "classify": not pictures}
        self._kinds = [kind for kind in WEIGHTS if not left_out.get(kind, False)]
        self._weights = [WEIGHTS[kind] for kind in self._kinds]
        self._rarity = [RARE if each.rare else 1.0 for each in hostile]

    @property
    def cases(self) -> tuple[Case, ...]:
        """What is asked."""
        return self._known.cases

    @property
    def connections(self) -> int:
        """Opened so far, for requests that others' connections served as well."""
        return self._lines.opened

    def make_request(self, due: float, clock: Callable[[], float]) -> Coroutine[Any, Any, None]:
        """The next request, drawn."""
        if self._random.random() < HOSTILE_SHARE:
            (hostile,) = self._random.choices(self._hostile, self._rarity)
            return self._send_hostile(hostile)
        (kind,) = self._random.choices(self._kinds, self._weights)
        return self._send_good(kind, due, clock)

    def close(self) -> None:
        """Hang up."""
        self._lines.close()

    async def _send_good(self, kind: str, due: float, clock: Callable[[], float]) -> None:
        tally = self.good[kind]
        tally.sent += 1
        try:
            if kind == "classify":
                images, off = await self._classify()
            elif kind == "grpc":
                images, off = await self._ask_grpc()
            else:
                images, off = await self._ask_http(kind)
        except WrongAnswer as error:
            tally.wrong += 1
            self._note(kind, str(error))
        except (Broken, NotConnected) as error:
            tally.lost += 1
            self._note(kind, f"{type(error).__name__}: {error}")
        except _Status as error:
            tally.statuses[error.status] += 1
            self._note(kind, f"status {error.status}: {error}")
        else:
            tally.right += 1
            tally.images += images
            self.largest_deviation = max(self.largest_deviation, off)
            self.latencies.append(clock() - due)

    async def _ask_http(self, kind: str) -> tuple[int, float]:
        case = self._random.choice(self._known.cases)
        form = "binary" if kind == "new connection" else kind
        answer = await self._lines.ask(
            self._made[form, case.number], PATIENCE_SECONDS, fresh=kind == "new connection"
        )
        _expect_ok(answer)
        return len(case.images), check_answer(case, answer)

    def _make(self, form: str, case: Case) -> bytes:
        name = self._known.input_name
        match form:
            case "binary":
                return binary_message(case, name, self._path)
            case "json":
                return http_message(self._path, json_body(case, name))
            case "chunked":
                head, raw = binary_parts(case, name)
                return chunked_message(self._path, head + raw, f"{LENGTH}: {len(head)}")
            case _:
                return gzip_message(case, name, self._path, as_json=form == "gzip json")

    async def _classify(self) -> tuple[int, float]:
        picture = self._random.choice(self._pictures)
        path = f"/v2/models/{self._model}/classify?top={len(self._known.manifest.classes)}"
        message = http_message(path, picture.png, "Content-Type: image/png")
        answer = await self._lines.ask(message, PATIENCE_SECONDS)
        _expect_ok(answer)
        return 1, check_classes(picture, answer, self._known.manifest.classes)

    async def _ask_grpc(self) -> tuple[int, float]:
        assert self._grpc is not None
        case = self._random.choice(self._known.cases)
        try:
            outputs = await self._grpc.infer(case, PATIENCE_SECONDS)
        except GrpcRefusal as error:
            raise _Status(error.status, str(error)) from None
        return len(case.images), check_outputs(case, outputs)

    async def _send_hostile(self, hostile: Hostile) -> None:
        tally = self.bad[hostile.name]
        tally.sent += 1
        self.counted[hostile.counted] += 1
        if hostile.then == "leave":
            if await self._leave(hostile):
                tally.right += 1
            else:
                tally.lost += 1
            return
        try:
            answer = await self._lines.ask(
                hostile.message, PATIENCE_SECONDS, fresh=not hostile.framed
            )
        except (Broken, NotConnected) as error:
            tally.lost += 1
            self._note(hostile.name, f"{type(error).__name__}: {error}")
            return
        if answer.status == hostile.status:
            tally.right += 1
        elif answer.status == 200:
            tally.wrong += 1
            self._note(hostile.name, "was answered with a result")
        else:
            tally.statuses[str(answer.status)] += 1
            self._note(hostile.name, f"status {answer.status}, not {hostile.status}")

    async def _leave(self, hostile: Hostile) -> bool:
        """Connect, send, and go after a moment; whether there was a connection."""
        host, _, port = self._lines.url.removeprefix("http://").partition(":")
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError as error:
            self._note(hostile.name, f"no connection: {error}")
            return False
        writer.write(hostile.message)
        with suppress(OSError):
            await writer.drain()
            await asyncio.sleep(self._random.random() * LONGEST_WAIT_TO_LEAVE)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return True

    def _note(self, kind: str, words: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(f"{kind}: {words[:200]}")


class _Status(Exception):
    """Another status than success."""

    def __init__(self, status: str, words: str) -> None:
        super().__init__(words)
        self.status = status


def _expect_ok(answer: HttpAnswer) -> None:
    if answer.status != 200:
        raise _Status(str(answer.status), answer.body[:200].decode("utf-8", "replace"))
