"""Server process: listens at once, loads, answers, and ends on SIGTERM or ctrl-C within two seconds."""

import ctypes
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import click
from flask import Flask
from waitress.server import BaseWSGIServer, create_server

from retriever_server.app import MAX_BODY_BYTES, create_app, set_searcher
from retriever_server.errors import RetrieverError
from retriever_server.service import Searcher

MAX_CONNECTIONS = 4096
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Stop(BaseException):
    """A signal asks the process to end."""


def run(load: Callable[[], Searcher], host: str, port: int, http_threads: int) -> NoReturn:
    """Serve until a signal comes, then exit with status 0. HTTP answers 503 until `load` returns.

    Loading stands in the main thread, so its errors end the process and a signal interrupts it.
    Raises RetrieverError when the address cannot be had, and what `load` raises.
    """
    started = time.monotonic()
    listener = _bind(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    app = create_app()
    server = _http_server(app, listener, http_threads)
    try:
        _on_stop_signals(_stop)
        threading.Thread(target=server.run, name="http", daemon=True).start()
        click.echo(f"listening on {url}, loading the index", err=True)
        searcher = load()
        set_searcher(app, searcher)
        figures = (
            f"{searcher.manifest.count:,} passages, {searcher.manifest.encoder or searcher.manifest.kind}"
        )
        click.echo(f"ready: {url} ({figures}, {time.monotonic() - started:.1f} s)")
        while True:
            signal.pause()
    except _Stop:
        server.task_dispatcher.shutdown(timeout=1)  # seconds; requests under way are still answered
    os._exit(0)  # the interpreter's own end, with torch loaded, takes longer than callers wait


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the process that started this one ends; RetrieverError off Linux."""
    if sys.platform != "linux":
        raise RetrieverError("--die-with-parent works on Linux only")
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended just before we asked
        sys.exit(0)


def _on_stop_signals(handler: "Callable[[int, FrameType | None], None] | signal.Handlers") -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    _on_stop_signals(signal.SIG_IGN)  # one is enough: a second must not break into the clean end
    raise _Stop


def _bind(host: str, port: int) -> socket.socket:
    """A socket on one address of `host`, IPv4 if it has one: so port 0 gives one port, and one URL."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = "stop what listens there, or choose another --port (0 takes a free one)"
            raise RetrieverError(f"port {port} on {host} is in use: {advice}") from error
        raise RetrieverError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _http_server(app: Flask, listener: socket.socket, threads: int) -> BaseWSGIServer:
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a request that waits its turn is no news
    return create_server(
        app,
        sockets=[listener],
        threads=threads,
        connection_limit=MAX_CONNECTIONS,
        backlog=MAX_CONNECTIONS,
        asyncore_use_poll=True,  # select() ends at 1024 descriptors
        max_request_body_size=8 * MAX_BODY_BYTES,  # above the application's limit, whose answer is JSON
        ident="retriever_server",
    )
