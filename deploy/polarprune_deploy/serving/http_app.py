"""The HTTP side: from a request to exactly one answer, whatever is sent.

Inference and images, which are most of the traffic, are told apart here; every other route is
Starlette's (`http_routes`).
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

from starlette.types import ASGIApp

from polarprune_deploy.serving.authorization import check_token
from polarprune_deploy.serving.batcher import Named
from polarprune_deploy.serving.classification import ImageRequest, classify
from polarprune_deploy.serving.held_bytes import Held
from polarprune_deploy.serving.http_bodies import (
    Headers,
    Receive,
    read_body,
    refuse_contradictions,
)
from polarprune_deploy.serving.http_infer import LENGTH_HEADER, encode_response, parse_infer
from polarprune_deploy.serving.infer_requests import InferRequest
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.request_errors import (
    BROKEN,
    CANCELED,
    UNFORESEEN,
    UNKNOWN,
    WRONG_METHOD,
    RequestError,
)
from polarprune_deploy.serving.request_ids import RequestIds
from polarprune_deploy.serving.serve_options import ServeOptions
from polarprune_deploy.serving.served_model import ServedModel
from polarprune_deploy.serving.thread_queue import ThreadQueue

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]

OPEN_PATHS = frozenset({"/", "/v2/health/live", "/v2/health/ready"})
"""Without a token: they hold nothing of anybody's."""
WATCH_AFTER = 0.02
"""Seconds; whoever gets an answer sooner need not be watched for leaving."""
LONG_JSON, LONG_LIST = 1 << 16, 10_000
"""Bytes to read and numbers to write that would hold up everybody else: a thread does it."""
LONG_JSON_DIGITS = len(str(LONG_JSON))
MOST_DECODERS = 4
"""Images that are decoded at a time; each may take half a gigabyte."""
JSON_TYPE = (b"content-type", b"application/json")
CLOSE = (b"connection", b"close")

log = logging.getLogger("polarprune.serve")


class HttpApp:
    """An ASGI application."""

    def __init__(
        self, repository: Repository, options: ServeOptions, token: bytes | None,
        routes: ASGIApp, held: Held,
    ) -> None:  # fmt: skip
        """Serve a repository.

        Args:
            token: that requests must bring; None for none.
            routes: everything but inference and images.
            held: shared with the other protocol.
        """
        self._repository, self._options, self._token = repository, options, token
        self._routes = routes
        self._images = ThreadQueue(min(MOST_DECODERS, os.cpu_count() or 1))
        # Python reads and writes JSON in one thread at a time anyway; more would only take memory.
        self._documents = ThreadQueue(1, "long documents")
        self._held = held
        self._ids = RequestIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: Headers = dict(scope["headers"])
        number = self._ids.of(headers.get(b"x-request-id", b"").decode("latin-1"))
        start = time.monotonic()
        try:
            if len(headers) != len(scope["headers"]):
                refuse_contradictions(scope["headers"])
            if b"%2f" in scope["raw_path"].lower():
                # No name holds a slash; whoever stands before this server may not see one here.
                raise RequestError(UNKNOWN, "no such route")
            if scope["path"] not in OPEN_PATHS:
                check_token(self._token, headers.get(b"authorization"))
            parts = scope["path"].split("/")
            # Five or more: a model may be called infer.
            asks = len(parts) > 4 and parts[-1] in ("infer", "classify")
            if asks and parts[:3] == ["", "v2", "models"]:
                answer = await self._ask_model(scope, headers, parts, receive)
            else:
                scope["request_id"] = number
                await self._routes(scope, receive, self._with_more(send, number))
                return
        except RequestError as error:
            answer = error_answer(error)
            if error.kind == BROKEN:
                log.error("failed", extra={"request_id": number}, exc_info=error.__cause__)
        except Exception as error:
            log.error("failed", extra={"request_id": number}, exc_info=error)
            answer = error_answer(RequestError(BROKEN, UNFORESEEN))
        status, more, body = answer
        if self._options.access_log:
            log.info(
                "request", extra={"request_id": number, "path": scope["path"][:200],
                                  "status": status, "ms": _ms(start)},
            )  # fmt: skip
        more += [(b"content-length", b"%d" % len(body)), *self._more(number)]
        await send({"type": "http.response.start", "status": status, "headers": more})
        await send({"type": "http.response.body", "body": body})

    def _more(self, number: str) -> list[tuple[bytes, bytes]]:
        """Headers of every answer."""
        # Who kept its connection would be cut off in the middle of a request when the server ends.
        leaving = [CLOSE] if self._repository.leaving else []
        return [(b"x-request-id", number.encode()), *leaving]

    def _with_more(self, send: Send, number: str) -> Send:
        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._more(number)]
            await send(message)

        return sending

    async def _ask_model(
        self, scope: Scope, headers: Headers, parts: list[str], receive: Receive
    ) -> Answer:
        version = ""
        if len(parts) == 7 and parts[4] == "versions" and parts[5]:
            version = parts[5]
        elif len(parts) != 5:
            raise RequestError(UNKNOWN, "no such route")
        if scope["method"] != "POST":
            raise RequestError(WRONG_METHOD, f"{parts[-1]} takes POST, got {scope['method']}")
        model = self._repository.get(parts[3], version)
        try:
            model.batcher.refuse_if_full()
            with self._held.room() as room:
                body = await read_body(headers, receive, room, self._options.bounds)
                if parts[-1] == "classify":
                    asked = ImageRequest(
                        body, headers.get(b"content-type", b""), scope["query_string"]
                    )
                    return await self._classify(asked, parts[3], version, receive)
                return await self._infer(model, version, body, headers, receive)
        except RequestError as error:
            if not getattr(error, "counted", False):
                model.counters.failed(error.kind)
            raise

    async def _infer(
        self, model: ServedModel, version: str, body: bytes, headers: Headers, receive: Receive
    ) -> Answer:
        signature = model.facts.signature
        length_header, bounds = headers.get(LENGTH_HEADER), self._options.bounds
        may_be_json = length_header is None or len(length_header) >= LONG_JSON_DIGITS
        read = partial(parse_infer, body, length_header, signature, bounds)
        if may_be_json and len(body) > LONG_JSON:
            asked = await self._while_connected(receive, self._documents.run(read))
        else:
            asked = read()
        outputs, model = await self._while_connected(
            receive, self._repository.infer(model, asked.request, version)
        )
        facts = model.facts
        words = (asked, outputs, facts.name, facts.version, signature)
        try:
            if not asked.binary and sum(array.size for array in outputs.values()) > LONG_LIST:
                write = partial(encode_response, *words)
                content, length = await self._documents.run(write)
            else:
                content, length = encode_response(*words)
        except RequestError as error:
            error.counted = True  # the model gave its result
            raise
        if length is None:
            return 200, [JSON_TYPE], content
        return 200, [
            (b"content-type", b"application/octet-stream"),
            (LENGTH_HEADER, b"%d" % length),
        ], content  # fmt: skip

    async def _classify(
        self, asked: ImageRequest, name: str, version: str, receive: Receive
    ) -> Answer:
        async def infer(model: ServedModel, request: InferRequest) -> Named:
            outputs, _ = await self._repository.infer(model, request)
            return outputs

        find = partial(self._repository.get, name, version)
        pixels = self._options.bounds.pixels
        document = await self._while_connected(
            receive, classify(asked, find, infer, self._images, pixels)
        )
        return 200, [JSON_TYPE], json.dumps(document, separators=(",", ":")).encode()

    async def _while_connected(self, receive: Receive, work: Awaitable[Any]) -> Any:
        """The result of the work, which is canceled when the sender goes.

        Raises:
            RequestError: CANCELED.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        watchers: list[asyncio.Task[None]] = []
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            assert task is not None
            task.cancel()

        timer = loop.call_later(WATCH_AFTER, lambda: watchers.append(loop.create_task(watch())))
        try:
            return await work
        except asyncio.CancelledError:
            if not gone or task is None:
                raise
            task.uncancel()
            error = RequestError(CANCELED, "the sender went")
            error.counted = True
            raise error from None
        finally:
            timer.cancel()
            for watcher in watchers:
                watcher.cancel()


def error_answer(error: RequestError) -> Answer:
    """Status, headers and body of an error."""
    headers = [JSON_TYPE]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if error.kind == WRONG_METHOD:
        headers.append((b"allow", b"POST"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return error.status, headers, json.dumps({"error": str(error)}).encode()


def _ms(start: float) -> float:
    return round((time.monotonic() - start) * 1e3, 3)
