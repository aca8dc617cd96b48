"""Server process: listens at once, loads, answers, reloads on request, and ends on SIGTERM or ctrl-C."""

import ctypes
import errno
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType
from typing import NoReturn

import click

from retriever_server.errors import RetrieverError, Unavailable
from retriever_server.http.app import create_retriever_app
from retriever_server.http.httpd import HttpServer
from retriever_server.serving.served import Served
from retriever_server.serving.service import Searcher

GRACE_S = 30  # for requests in flight at the end; what takes longer is cut off
PR_SET_PDEATHSIG = 1  # linux/prctl.h

SearcherLoader = Callable[[Callable[[str], None]], Searcher]
"""Loads a searcher, and reports each stage to its argument."""


@dataclass(frozen=True)
class ListenOptions:
    """Where to listen, and who may do what."""

    host: str
    port: int
    http_threads: int
    token: str | None = None
    reload: bool = False


class _Stop(BaseException):
    """A signal asked the process to end."""


def run_server(
    load: SearcherLoader, served: Served, options: ListenOptions, at_end: Callable[[], None] = lambda: None
) -> NoReturn:
    """Serve until a signal comes, finish what is in flight, call `at_end` and exit with status 0.

    HTTP answers 503 until `load` returns. `load` runs in the main thread, so its errors end the process and a
    signal interrupts it. Raises RetrieverError when the address is not available, and what `load` raises.
    """
    listener = _bind(options.host, options.port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    http = HttpServer(create_retriever_app(served, options.token), listener, options.http_threads)
    try:
        _on_stop_signals(_stop)
        http.start()
        click.echo(f"listening on {url}, loading the index", err=True)
        summary = _load_into(served, load, lambda stage: setattr(served, "stage", stage))
        click.echo(f"ready: {url} ({summary})")
        _reload_on_request(load, served, options.reload)
    except _Stop:
        http.stop(GRACE_S)
        at_end()
    os._exit(0)  # the interpreter's own shutdown, with torch loaded, takes longer than callers wait


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the process that started this one ends; RetrieverError off Linux."""
    if sys.platform != "linux":
        raise RetrieverError("--die-with-parent works on Linux only")
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # the parent ended just before the call
        sys.exit(0)


def _reload_on_request(load: SearcherLoader, served: Served, allowed: bool) -> NoReturn:
    """Reload on each SIGHUP or HTTP request, in the main thread, until a signal ends it."""
    requests: SimpleQueue[Future[None]] = SimpleQueue()

    def request_reload() -> Future[None]:
        request: Future[None] = Future()
        requests.put(request)  # a SimpleQueue is safe to use in a signal handler
        return request

    if allowed:
        signal.signal(signal.SIGHUP, lambda number, frame: request_reload() and None)
        served.reload = lambda: request_reload().result()
    while True:
        request = requests.get()
        try:
            summary = _load_into(served, load, lambda stage: None)
            served.metrics.reloads.labels("done").inc()
            click.echo(f"reloaded: {summary}")
        except Exception as error:  # whatever is wrong with the new index, the old one stays in service
            served.metrics.reloads.labels("failed").inc()
            click.echo(f"reload failed, still serving the old index: {error}", err=True)
            request.set_exception(error)
        except _Stop:
            request.set_exception(Unavailable("the server is shutting down"))
            raise
        else:
            request.set_result(None)


def _load_into(served: Served, load: SearcherLoader, report: Callable[[str], None]) -> str:
    """Serve a newly loaded searcher; returns a summary of it for people."""
    started = time.monotonic()
    searcher = load(report)
    served.swap(searcher)
    _settle_memory()
    manifest = searcher.manifest
    seconds = time.monotonic() - started
    return f"{manifest.count:,} passages, {manifest.encoder or manifest.kind}, {seconds:.1f} s"


def _settle_memory() -> None:
    """Free a replaced index, and exempt what is loaded from further garbage collections.

    Each collection would scan all of torch, and delay every request by a quarter of a second.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _on_stop_signals(handler: "Callable[[int, FrameType | None], None] | signal.Handlers") -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    _on_stop_signals(signal.SIG_IGN)  # one is enough: a second must not interrupt the clean shutdown
    raise _Stop


def _bind(host: str, port: int) -> socket.socket:
    """A socket on one address of `host`, IPv4 if it has one, so that port 0 gives one port and one URL."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = "stop what listens there, or choose another --port (0 takes a free one)"
            raise RetrieverError(f"port {port} on {host} is in use: {advice}") from error
        raise RetrieverError(f"cannot listen on {host}:{port}: {error.strerror}") from error
