"""`polarprune serve`: listen, load, serve, drain.

The ports are open before anything is loaded, so that liveness can be asked; readiness comes with
the last model. SIGTERM and SIGINT drain: not ready at once, new requests still taken for the lame
duck's seconds, then refused, those taken answered, exit 0; one more signal changes nothing. SIGHUP
looks at the folder again, and tries again what could not be loaded.
"""

import asyncio
import errno
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarprune.errors import (
    BundleError,
    ConfigError,
    PolarpruneError,
)
from polarprune.image_decoding import quiet_decoding
from polarprune.manifest import refuse_run
from polarprune.optional_packages import import_package
from polarprune.terminal import print_error
from polarprune_deploy.serving.authorization import SHORTEST
from polarprune_deploy.serving.bundle_folders import find_bundles
from polarprune_deploy.serving.descriptors import allow_descriptors
from polarprune_deploy.serving.garbage import set_aside_what_is_loaded
from polarprune_deploy.serving.serve_options import FLUSH_SECONDS, ServeOptions
from polarprune_deploy.serving.service_log import log_to_stderr
from polarprune_deploy.token_files import read_token

if TYPE_CHECKING:
    import uvicorn

    from polarprune_deploy.serving.repository import Repository
    from polarprune_deploy.serving.served_model import ServedModel

STOPS = (signal.SIGTERM, signal.SIGINT)
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
LAST_WORDS_SECONDS = 0.25
SWITCH_SECONDS = 0.0005
NOT_READY = (
    "not ready: no version of these serves; the index says why; repair them or take them out of "
    "the folder (SIGHUP: try again)"
)

log = logging.getLogger("polarprune.serve")


def serve(
    options: ServeOptions, on_listening: Callable[[dict[str, int]], None] = lambda _: None
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        on_listening: told the ports: http, grpc, metrics.

    Raises:
        BundleError: there is nothing to serve.
        ConfigError: a port that is taken, a token file that cannot be read.
        BackendUnavailable: a package is not here.
        PolarpruneError: no bundle can be loaded at the start, or an engine failed so that its
            results could not be trusted any more.
    """
    _check_source(options.source)
    token = read_token(options.token_file, SHORTEST)
    _check_packages(options)
    import uvloop

    log_to_stderr()
    if not allow_descriptors(options.bounds.connections):
        log.warning(
            "fewer files may be open than the %d connections that are allowed; raise ulimit -n",
            options.bounds.connections,
        )
    if token is None and not _is_loopback(options.host):
        log.warning(
            "--host %s without --token-file: whoever reaches this address may ask; give a token "
            "file, or let only trusted machines reach it", options.host,
        )  # fmt: skip
    # Between two batches the engine's thread waits so long for Python's lock, at most.
    sys.setswitchinterval(SWITCH_SECONDS)
    service = _Service(options, token, on_listening)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if runner.run(service.run()):
            _end_process(service.failure)
    if service.failure is not None:
        raise PolarpruneError(service.failure)


def _check_source(source: Path) -> None:
    try:
        seen = find_bundles(source)
    except OSError as error:
        raise BundleError(
            f"{source} cannot be read ({error.strerror}); give a bundle, or a folder of bundles"
        ) from None
    if seen.bundles:
        return
    for words in seen.passed_over:
        raise BundleError(words)
    for name, reason in seen.unreadable.items():
        raise BundleError(f"{source / name} cannot be read ({reason}); give a folder of bundles")
    refuse_run(source)
    raise BundleError(
        f"{source} is neither a bundle nor a folder of bundles; write one with: polarprune export"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _end_process(failure: str | None) -> None:
    """End now: Python would wait for a thread that nobody can call back, out of a runtime."""
    log.warning("ending while a model is still being loaded or computes")
    if failure is not None:
        print_error(failure)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if failure is None else 1)


def _check_packages(options: ServeOptions) -> None:
    """Say now what is not here, not when a port is open.

    Raises:
        BackendUnavailable: a package is not installed.
    """
    # gRPC's core would write lines of its own on stderr, which are no JSON; it reads this once.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # ONNX Runtime tells its makers of its use otherwise.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    packages = dict.fromkeys(("starlette", "uvicorn", "httptools", "uvloop"), "")
    packages["prometheus_client"] = ""
    if options.grpc_port is not None:
        packages |= dict.fromkeys(
            ("grpc", "google.protobuf"), ", or serve without gRPC: --grpc-port -1"
        )
    for package, otherwise in packages.items():
        import_package(package, f"pip install 'polarprune[serve]'{otherwise}")


class _Service:
    def __init__(
        self, options: ServeOptions, token: bytes | None,
        on_listening: Callable[[dict[str, int]], None],
    ) -> None:  # fmt: skip
        self._options, self._token, self._on_listening = options, token, on_listening
        self._stopping = asyncio.Event()
        self._look_again = asyncio.Event()
        self._trouble = ""
        self._serving: list[ServedModel] = []
        self._missing: list[str] | None = None
        self.failure: str | None = None

    async def run(self) -> bool:
        """Whether a thread was left behind."""
        loop = asyncio.get_running_loop()
        for number in STOPS:
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._look_again.set)
        try:
            return await self._serve()
        finally:
            for number in STOPS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # what ends need not be told again

    async def _serve(self) -> bool:
        from polarprune_deploy.serving.held_bytes import Held
        from polarprune_deploy.serving.http_app import HttpApp
        from polarprune_deploy.serving.http_routes import make_metrics_routes, make_routes
        from polarprune_deploy.serving.repository import Repository

        options = self._options
        repository = Repository(options, self._break)
        held = Held(options.bounds)
        app = HttpApp(repository, options, self._token, make_routes(repository), held)
        async with AsyncExitStack() as stack:
            stack.enter_context(quiet_decoding())
            ports = {}
            ports["http"] = await stack.enter_async_context(
                _http_server(app, options.http_port, "--http-port", options)
            )
            if options.metrics_port is not None:
                metrics = make_metrics_routes(repository)
                ports["metrics"] = await stack.enter_async_context(
                    _http_server(metrics, options.metrics_port, "--metrics-port", options)
                )
            if options.grpc_port is not None:
                from polarprune_deploy.serving.grpc_server import grpc_server

                ports["grpc"] = await stack.enter_async_context(
                    grpc_server(repository, options, self._token, held)
                )
            log.info("listening", extra={"host": options.host, **ports})
            self._on_listening(ports)
            looking = asyncio.create_task(self._keep_looking(repository))
            await self._stopping.wait()
            log.info("draining")
            looking.cancel()
            await self._drain(repository)
        log.info("stopped")
        return repository.stuck

    async def _keep_looking(self, repository: "Repository") -> None:
        """Load what there is, then look again at intervals or when told."""
        seconds = self._options.poll_seconds or None
        await self._look(repository)
        if not repository.models:
            self._fail(_reasons(repository) or self._trouble or "there is no bundle any more")
        while True:
            try:
                async with asyncio.timeout(seconds):
                    await self._look_again.wait()
            except TimeoutError:
                pass
            told = self._look_again.is_set()
            self._look_again.clear()
            await self._look(repository, again=told)

    async def _look(self, repository: "Repository", again: bool = False) -> None:
        try:
            await repository.look(again=again)
        except Exception as error:  # a folder on a network may fail in many ways
            trouble = f"the folder cannot be looked at ({type(error).__name__}: {error})"
            if trouble != self._trouble:  # else it would be said every few seconds
                log.error("%s cannot be looked at", self._options.source, exc_info=error)
            self._trouble = trouble
        else:
            self._trouble = ""
        if self._serving != repository.models:
            self._serving = repository.models
            set_aside_what_is_loaded()
        self._say_whether_ready(repository)

    def _say_whether_ready(self, repository: "Repository") -> None:
        """When it changes: one model that does not serve keeps a whole server out of service."""
        missing = repository.missing
        if missing == self._missing or not repository.models or repository.leaving:
            return
        self._missing = missing
        if missing:
            log.warning(NOT_READY, extra={"models": missing})
        else:
            log.info("ready")

    async def _drain(self, repository: "Repository") -> None:
        options = self._options
        repository.leaving = True  # not ready, and still serving
        if self.failure is None and options.lame_duck_seconds:
            await asyncio.sleep(options.lame_duck_seconds)
        drained = await repository.close(0 if self.failure else options.drain_seconds)
        if not drained:
            log.error(
                "not all requests were answered within --drain-seconds %g", options.drain_seconds
            )

    def _break(self, model: str, error: BaseException) -> None:
        log.critical("engine failed", extra={"model": model, "error": str(error)})
        self._fail(
            f"the engine of {model} failed so that no result can be trusted any more "
            f"({' '.join(str(error).split())[:200]}); the server ends, start it again"
        )

    def _fail(self, words: str) -> None:
        """End with an error, the first that is told."""
        if self.failure is None:
            self.failure = words
        self._stopping.set()


def _reasons(repository: "Repository") -> str:
    """Why nothing serves, of each model."""
    entries = repository.index()
    if len(entries) == 1:
        return entries[0].reason
    return "; ".join(f"{entry.name}: {entry.reason}" for entry in entries)


@asynccontextmanager
async def _http_server(app: Any, port: int, option: str, options: ServeOptions) -> Any:
    """Listen with uvicorn; at the end the open requests get their answers."""
    import uvicorn

    from polarprune_deploy.serving.bounded_protocol import BoundedProtocol

    protocol: Any = partial(BoundedProtocol, bounds=options.bounds)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", proxy_headers=False,
        server_header=False, http=protocol,
        timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=FLUSH_SECONDS,
    )  # fmt: skip
    server = uvicorn.Server(config)
    listener = _listen(options.host, port, option)
    # Not `serve`, which would take the signals.
    running = asyncio.create_task(server._serve([listener]))
    while not server.started:
        if running.done():
            running.result()
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        await _let_go(server, listener)
        server.should_exit = True
        await running


async def _let_go(server: "uvicorn.Server", listener: socket.socket) -> None:
    """Take no connection more, and give those that are open a moment to ask and be answered.

    Closed at once, a request that is just coming would be cut off without a word.
    """
    knocking = select.poll()
    knocking.register(listener, select.POLLIN)
    for _ in range(BACKLOG):  # who has knocked is let in, one in each turn of the loop
        if not knocking.poll(0):
            break
        await asyncio.sleep(0)
    for each in server.servers:
        each.close()
    loop = asyncio.get_running_loop()
    end = loop.time() + LAST_WORDS_SECONDS
    while server.server_state.connections and loop.time() < end:
        await asyncio.sleep(0.01)


def _listen(host: str, port: int, option: str) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # "::" is every address, the old kind too: so gRPC understands it.
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        # What Python adds to the system's words says the port again.
        code = error.errno or 0  # below 0 where it is a name that is not found
        reason = os.strerror(code) if code > 0 else error.strerror
        other = option if code in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise ConfigError(
            f"port {port} of {host} cannot be listened on ({reason}); choose another {other}"
        ) from None
