"""The models that are served, held to the folder they come from.

A bundle that is new or has changed is loaded beside the one that serves; only when it has been
verified and is warm do requests go to it, and the old one answers what it has taken. One that
cannot be loaded changes nothing but its line in the index; where nothing serves yet, an older
version of it is tried. A model goes when its bundle has been away for two looks: between two
renames it is away for a moment.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from polarprune.errors import PolarpruneError, first_line
from polarprune_deploy.serving.batch_policy import BatchPolicy
from polarprune_deploy.serving.batcher import Named, QueueLimits
from polarprune_deploy.serving.bundle_folders import Found, Seen, find_bundles
from polarprune_deploy.serving.counters import Counters
from polarprune_deploy.serving.engine_failures import is_fatal
from polarprune_deploy.serving.infer_requests import InferRequest, shown
from polarprune_deploy.serving.model_loading import LoadedModel, load_model
from polarprune_deploy.serving.request_errors import REJECTED, UNKNOWN, RequestError
from polarprune_deploy.serving.serve_options import ServeOptions
from polarprune_deploy.serving.served_model import ServedModel

READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"
LOOKS_AWAY = 2
MOST_CLOSING = 1024
"""Models that are closed at a time; a thread each, made when it is needed."""
LEAST_SECONDS = 0.1
"""For an engine's thread to end that has nothing to do."""
CLOSE_SECONDS = 2
"""To free engines, once all is answered."""
MOST_NAMED = 8
"""Models in one message."""
LEAST_QUEUE, LONGEST_QUEUE = 16, 4096

log = logging.getLogger("polarprune.serve")
Result = TypeVar("Result")


@dataclass(frozen=True)
class IndexEntry:
    """One line of the repository's index, in the protocol's words."""

    name: str
    version: str
    state: str
    reason: str = ""


@dataclass
class _Slot:
    """One name: what serves, what was last tried, and why that failed."""

    model: ServedModel | None = None
    tried: Found | None = None
    state: str = LOADING
    reason: str = ""
    away: int = 0


class Repository:
    """All models of one folder. Its methods belong to one event loop."""

    def __init__(
        self, options: ServeOptions, on_fatal: Callable[[str, BaseException], None]
    ) -> None:
        """Nothing is loaded yet.

        Args:
            on_fatal: told, in the loop, of an engine whose results cannot be trusted any more.
        """
        self._options, self._on_fatal = options, on_fatal
        self._slots: dict[str, _Slot] = {}
        self._counters: dict[tuple[str, str], Counters] = {}
        # One at a time: loading measures how long batches take.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._loading: Future[Any] | None = None
        self._closer = ThreadPoolExecutor(MOST_CLOSING, thread_name_prefix="closer")
        self._retiring: set[asyncio.Future[bool]] = set()
        self._undrained = 0
        self._looking = asyncio.Lock()
        self._warned: frozenset[str] = frozenset()
        self._looked = False
        self.leaving = False
        """Not ready any more, though what comes is still answered."""
        self.draining = False
        self.broken = False

    async def look(self, *, again: bool = False) -> None:
        """Compare with the folder: load what is new, replace what has changed, drop what went.

        Args:
            again: try what could not be loaded, though it has not changed: memory may have been
                short, or a disk.

        Raises:
            OSError: the folder cannot be read; nothing has changed then.
        """
        async with self._looking:
            seen = await self._in_loader(find_bundles, self._options.source)
            self._warn(seen)
            for name in sorted(set(self._slots) - set(seen.bundles) - set(seen.unreadable)):
                self._miss(name)
            for name in seen.bundles:
                self._slots.setdefault(name, _Slot()).away = 0
            for name, versions in seen.bundles.items():
                slot = self._slots[name]
                failed = again and slot.state == UNAVAILABLE
                if (failed or slot.tried != versions[0]) and not self.leaving:
                    await self._load(slot, versions)
            self._looked = True

    @property
    def ready(self) -> bool:
        """Whether every model serves what its folder was last seen to hold, or an older state."""
        away = self.leaving or self.draining or self.broken
        return bool(self._slots) and not self.missing and not away

    @property
    def missing(self) -> list[str]:
        """Names of which no version serves: while there is one, the server is not ready."""
        return sorted(name for name, slot in self._slots.items() if slot.model is None)

    @property
    def models(self) -> list[ServedModel]:
        """Those that serve, by name."""
        return [s.model for _, s in sorted(self._slots.items()) if s.model is not None]

    @property
    def counters(self) -> list[tuple[str, str, Counters]]:
        """Of every model and version that ever served: name, version, counts."""
        return [(name, version, c) for (name, version), c in sorted(self._counters.items())]

    def index(self) -> list[IndexEntry]:
        """What there is, what serves, and why something does not."""
        entries = []
        for name, slot in sorted(self._slots.items()):
            if slot.model is not None:
                entries.append(IndexEntry(name, slot.model.facts.version, READY))
            if slot.state != READY and slot.tried is not None:
                entries.append(IndexEntry(name, slot.tried.version, slot.state, slot.reason))
        return entries

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model of a name: its folder's, or the one in the manifest where that is clear.

        Raises:
            RequestError: UNKNOWN; REJECTED where it is loading, or may be.
        """
        slot = self._slots.get(name) or self._by_manifest(name)
        if slot is None and not self._looked:
            raise RequestError(REJECTED, "the server starts, and models are being loaded", 1)
        if slot is None:
            raise RequestError(UNKNOWN, f"unknown model {shown(name)}; {self._known()}")
        if slot.model is None:
            if slot.state == LOADING:
                raise RequestError(REJECTED, f"model {name} is being loaded", 1)
            raise RequestError(REJECTED, f"model {name} is not available; the index says why", 5)
        if version not in ("", slot.model.facts.version):
            raise RequestError(
                UNKNOWN,
                f"model {name} has version {slot.model.facts.version}, not {shown(version)}",
            )
        return slot.model

    async def infer(
        self, model: ServedModel, request: InferRequest, version: str = ""
    ) -> tuple[Named, ServedModel]:
        """Outputs by name, and the model that gave them.

        A model may have been replaced between its look-up and now; then its successor answers, if
        it takes the same and no other version was asked for.

        Args:
            version: that was asked for; empty asks for any.

        Raises:
            RequestError: as `get`, and as `ServedModel.infer`.
        """
        if self.draining:
            raise RequestError(REJECTED, "the server stops")
        current = self.get(model.facts.name, version)
        was, now = model.facts.signature, current.facts.signature
        if (was.inputs, was.outputs) != (now.inputs, now.outputs) or request.rows > now.most:
            raise RequestError(
                REJECTED, f"model {model.facts.name} was just replaced by one that takes something "
                "else; look at its metadata, and ask again", 1,
            )  # fmt: skip
        return await current.infer(request), current

    async def close(self, seconds: float) -> bool:
        """Take nothing more, answer what waits.

        Returns:
            Whether all was answered within the seconds, by those that were replaced too.
        """
        self.draining = True
        for model in self.models:
            self._retire(model, max(seconds, LEAST_SECONDS))
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=seconds + CLOSE_SECONDS)
        self._loader.shutdown(wait=False, cancel_futures=True)
        return not self._retiring and not self._undrained

    @property
    def stuck(self) -> bool:
        """Whether a thread is still inside of a runtime, or of a disk: nothing can end it."""
        loading = self._loading is not None and not self._loading.done()
        return loading or bool(self._retiring) or self._undrained > 0

    async def _in_loader(self, call: Callable[..., Result], *args: object) -> Result:
        self._loading = future = self._loader.submit(call, *args)
        return await asyncio.wrap_future(future)

    async def _load(self, slot: _Slot, versions: tuple[Found, ...]) -> None:
        """The newest; while there is none that serves, those before it."""
        newest, *older = versions
        slot.tried, slot.state, slot.reason = newest, LOADING, ""
        failure = await self._replace(slot, newest)
        if failure is None:
            slot.state = READY
            return
        # Strangers see the index; where things lie here is not theirs to know.
        above = self._options.source.parent
        known = failure.replace(f"{above}/", "") if above.name else failure
        slot.state, slot.reason = UNAVAILABLE, known
        for bundle in older:
            if slot.model is None:
                await self._replace(slot, bundle)

    async def _replace(self, slot: _Slot, bundle: Found) -> str | None:
        """Why it cannot serve; None where it does from now on."""
        about = {"model": bundle.name, "version": bundle.version}
        log.info("loading", extra=about)
        try:
            loaded = await self._in_loader(self._load_blocking, bundle)
            model = self._serve(loaded)
        except Exception as error:  # whatever a runtime raises; the old one goes on
            known = isinstance(error, PolarpruneError)
            reason = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
            log.error("not loaded: %s", reason, extra=about)
            if is_fatal(error):
                self._break(bundle.name, error)
            return reason
        old, slot.model = slot.model, model
        policy = loaded.facts.policy
        log.info(
            "serving", extra={**about, "runs": loaded.facts.runs, "batch": policy.size,
                              "window_ms": round(policy.window * 1e3, 3)},
        )  # fmt: skip
        if old is not None:
            self._retire(old)
        return None

    def _load_blocking(self, bundle: Found) -> LoadedModel:
        return load_model(
            bundle.folder, bundle.name, bundle.version, self._options,
            lambda words: log.warning(words, extra={"model": bundle.name}),
        )  # fmt: skip

    def _serve(self, loaded: LoadedModel) -> ServedModel:
        facts, bounds = loaded.facts, self._options.bounds
        loop = asyncio.get_running_loop()
        counters = self._counters.setdefault((facts.name, facts.version), Counters())
        limits = QueueLimits(bounds.queue_requests or _a_second(facts.policy), bounds.queue_bytes)

        def fatal(name: str, error: BaseException) -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it the server
                loop.call_soon_threadsafe(self._break, name, error)

        milliseconds = self._options.timeout_ms
        return ServedModel(
            facts, loaded.engine, limits, counters,
            timeout=None if milliseconds is None else milliseconds / 1000,
            loop=loop, is_fatal=is_fatal, on_fatal=fatal,
        )  # fmt: skip

    def _break(self, name: str, error: BaseException) -> None:
        self.broken = True
        self._on_fatal(name, error)

    def _miss(self, name: str) -> None:
        slot = self._slots[name]
        slot.away += 1
        if slot.away >= LOOKS_AWAY or slot.model is None:
            del self._slots[name]
            log.info("gone", extra={"model": name})
            if slot.model is not None:
                self._retire(slot.model)

    def _retire(self, model: ServedModel, seconds: float | None = None) -> None:
        """Close without holding up anybody."""
        loop = asyncio.get_running_loop()
        closing = loop.run_in_executor(self._closer, model.close, seconds)
        self._retiring.add(closing)
        closing.add_done_callback(self._retired)

    def _retired(self, closing: "asyncio.Future[bool]") -> None:
        self._retiring.discard(closing)
        if closing.cancelled():
            return
        error = closing.exception()
        if error is not None:
            log.error("a model could not be closed", exc_info=error)
        elif not closing.result():
            self._undrained += 1

    def _warn(self, seen: Seen) -> None:
        """Of what cannot be served; once, while it is so."""
        words = set(seen.passed_over) | {
            f"the folder {shown(name)} cannot be read ({reason}); what serves from it goes on"
            for name, reason in seen.unreadable.items()
        }
        for line in sorted(words - self._warned):
            log.warning(line)
        self._warned = frozenset(words)

    def _known(self) -> str:
        names = sorted(self._slots)
        listed = ", ".join(names[:MOST_NAMED]) + (", ..." if names[MOST_NAMED:] else "")
        return f"the models are {listed}" if names else "there is none"

    def _by_manifest(self, name: str) -> _Slot | None:
        named = [
            slot
            for slot in self._slots.values()
            if slot.model is not None and slot.model.facts.manifest.name == name
        ]
        return named[0] if len(named) == 1 else None


def _a_second(policy: BatchPolicy) -> int:
    """Requests of one image that are computed in about a second: nobody waits much longer."""
    seconds = policy.seconds_for(policy.size) / policy.size
    return max(LEAST_QUEUE, 2 * policy.size, min(LONGEST_QUEUE, round(1 / seconds)))
