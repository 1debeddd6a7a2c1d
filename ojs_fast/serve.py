"""The main process of a server: embedded NATS first, then Granian's workers, and everything stopped in order.

Owns the life of the main process and its exit codes. Must not know what the workers serve.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import multiprocessing
import os
import resource
import secrets
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from ojs_fast import __version__, logs
from ojs_fast.api.keys import KeysFileError, read_keys
from ojs_fast.config import INTERNAL_BOOT_ID, INTERNAL_NATS_URL, Settings
from ojs_fast.storage import names
from ojs_fast.storage.access import NatsAccess
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.probe import NatsStartError, check_external
from ojs_fast.storage.server import EmbeddedNats, die_with_parent

log = logging.getLogger("ojs_fast")

TARGET = "ojs_fast.app:create_app"
TRACE_MODULES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
BACKLOG = 1024
HEADER_TIMEOUT_MS = 10_000  # a client that takes longer for its headers is dropped
BACKPRESSURE = 16_384  # requests under way per worker; event streams count as long as they are open
NATS_STOP_S = 20.0
WANTED_FILES = 65_536  # one per connection
ENOUGH_FILES = 8_192

EXIT_OK = 0
EXIT_FAILED = 1

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Else glibc gives the memory of each large job back to the kernel, which clears all its pages for the next one.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": 4 * 1024 * 1024, "MALLOC_TRIM_THRESHOLD_": 32 * 1024 * 1024}


class StartError(Exception):
    """The server cannot start; the message says what to do."""


class _StopRequested(BaseException):
    """SIGTERM or Ctrl-C arrived before Granian took the signals over."""


def run(settings: Settings, *, target: str = TARGET) -> int:
    """Serve `target` (module:factory of an ASGI application) until a signal; returns the exit code."""
    # Resolved once, so that the workers, whose standard error is the same, need not guess.
    logging_config = logs.dict_config(settings.log_level, settings.log_format)
    logs.configure(settings.log_level, settings.log_format)
    for warning in settings.warnings:
        log.warning(warning)
    for signum in _STOP_SIGNALS:
        signal.signal(signum, _request_stop)
    for name, limit_bytes in _MALLOC.items():
        os.environ.setdefault(name, str(limit_bytes))  # heeded by the processes that start from here on
    nats: EmbeddedNats | None = None
    try:
        _check_files(settings)
        _check_traces(settings)
        _raise_open_files()
        address = _free_address(settings)
        if settings.is_embedded:
            nats = EmbeddedNats(settings.data_dir, durability=settings.durability, staged=names.STAGED_IN_MEMORY)
            nats.start()
            if nats.was_cut_off:
                _mend(nats.url)
            os.environ[INTERNAL_NATS_URL] = nats.url
            os.environ[INTERNAL_BOOT_ID] = secrets.token_hex(8)
        else:
            for internal in (INTERNAL_NATS_URL, INTERNAL_BOOT_ID):
                os.environ.pop(internal, None)
            NatsAccess.from_settings(settings)  # says what is wrong with the files
            check_external(settings.nats_servers)
        _serve(settings, address, target, logging_config)
    except _StopRequested:
        return EXIT_OK
    except (NatsStartError, StartError) as error:
        log.error("ojs-fast cannot start: %s", error)
        return EXIT_FAILED
    except SystemExit:  # Granian's way to say that workers failed
        log.error("ojs-fast stops because its workers keep failing; the reason is in the lines above")
        return EXIT_FAILED
    finally:
        if nats is not None:
            nats.stop(NATS_STOP_S)
    log.info("ojs-fast has stopped")
    return EXIT_OK


def _mend(url: str) -> None:
    """Set right what a power cut tore, before any worker writes. Raises StartError."""
    import asyncio

    from ojs_fast.storage import torn

    try:
        asyncio.run(torn.mend(url))
    except Unavailable as error:
        raise StartError(f"the data directory cannot be looked through after a crash: {error}; start again") from error


def _request_stop(signum: int, _frame: FrameType | None) -> NoReturn:
    for one in _STOP_SIGNALS:  # the second Ctrl-C must not cut the clean-up of the first short
        signal.signal(one, signal.SIG_IGN)
    raise _StopRequested(signum)


def _free_address(settings: Settings) -> str:
    """Return the numeric address to listen on; raises StartError where it cannot be had.

    Granian's workers share the port (SO_REUSEPORT), so a second server of the same user would get in silently.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
            trial.listen(1)
    except OSError as error:
        raise StartError(
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror or error}); "
            "stop what uses it, or set OJS_PORT and OJS_HOST to others"
        ) from error
    return str(place[0])


def _raise_open_files() -> None:
    """Allow as many open connections as the system lets us; workers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < ENOUGH_FILES:
        log.warning(
            "only %d files can be open, so at most as many connections; raise the hard limit (ulimit -Hn)", wanted
        )


def _check_files(settings: Settings) -> None:
    """Look at keys and certificate before anything starts. Raises StartError."""
    try:
        if settings.api_keys_file:
            read_keys(Path(settings.api_keys_file))
        if settings.tls_cert:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_cert, settings.tls_key)
    except KeysFileError as error:
        raise StartError(f"{error} (OJS_API_KEYS_FILE)") from error
    except OSError as error:  # ssl.SSLError is one
        raise StartError(
            f"OJS_TLS_CERT {settings.tls_cert} and OJS_TLS_KEY {settings.tls_key} cannot be used together "
            f"({error.strerror or error}); expected a certificate chain and its unencrypted key, both PEM"
        ) from error


def _check_traces(settings: Settings) -> None:
    """Look whether what sends traces is installed, if it is asked for. Raises StartError."""
    if not settings.is_traced:
        return
    try:
        found = all(importlib.util.find_spec(module) for module in TRACE_MODULES)
    except ModuleNotFoundError:
        found = False
    if not found:
        raise StartError(
            "traces are asked for (OJS_OTEL_ENABLED, OJS_OTEL_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT), but "
            "OpenTelemetry is not installed; run pip install 'ojs-fast[otel]', or set OJS_OTEL_ENABLED=false"
        )


def _serve(settings: Settings, address: str, target: str, logging_config: dict[str, Any]) -> None:
    # Forking a process with threads (the supervisor of nats-server) is unsafe, and a forked worker would hold the lock
    # of the data directory and the main process' signal handlers.
    multiprocessing.set_start_method("spawn", force=True)
    server = Server(
        target,
        address=address,
        port=settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,  # clients of this protocol speak HTTP/1.1; detecting HTTP/2 costs a tenth
        workers=settings.workers,
        loop=Loops.uvloop,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS),
        ssl_cert=Path(settings.tls_cert) if settings.tls_cert else None,
        ssl_key=Path(settings.tls_key) if settings.tls_key else None,
        backlog=BACKLOG,
        backpressure=BACKPRESSURE,
        log_level=LogLevels.warning,
        log_dictconfig=logging_config,
        log_access=False,
        respawn_failed_workers=False,
        workers_kill_timeout=math.ceil(settings.shutdown_timeout_ms / 1000),
    )
    stopped = threading.Event()

    def announce() -> None:
        if _await_listening(address, settings.port, stopped):
            server.respawn_failed_workers = True  # not before: a worker that cannot start says so once
            _announce(settings)

    server.on_startup(threading.Thread(target=announce, name="announcer", daemon=True).start)
    try:
        server.serve(target_loader=partial(load_worker, target), wrap_loader=False)
    finally:
        stopped.set()


def load_worker(target: str) -> Callable[..., Any]:
    """Build the application in a worker process, which from then on ends with the main process."""
    die_with_parent()
    module, _, factory = target.partition(":")
    application: Callable[..., Any] = getattr(importlib.import_module(module), factory)()
    return application


def _await_listening(address: str, port: int, stopped: threading.Event) -> bool:
    """Wait until the first worker takes connections; False when the server stopped before."""
    while not stopped.wait(0.01):
        try:
            socket.create_connection((address, port), timeout=1.0).close()
        except OSError:
            continue
        return True
    return False


def _announce(settings: Settings) -> None:
    """Say where the server is, where the data lies and how safe they are."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    facts = {
        "url": f"{'https' if settings.tls_cert else 'http'}://{host}:{settings.port}/ojs/v1",
        "data": str(settings.data_dir.absolute()) if settings.is_embedded else "in NATS_URL",
        "durability": _durability(settings),
        "traces": "on" if settings.is_traced else "off",
        "auth": "bearer key" if settings.api_key or settings.api_keys_file else "off",
        "workers": settings.workers,
    }
    log.info("ojs-fast %s serves", __version__, extra=facts)


def _durability(settings: Settings) -> str:
    if not settings.is_embedded:
        return "as the servers in NATS_URL are set"
    if settings.durability == "always":
        return "always (on disk before each acknowledgement)"
    return "interval (on disk within a second)"
