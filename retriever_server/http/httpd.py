"""HTTP: waitress under the application, with failures as JSON, and an end that finishes what is in flight.

Of the WSGI servers that one process can hold (cheroot, gevent, granian, gunicorn's threads) granian alone
takes less of a core a request, 0.13 ms against 0.18 with Flask included, and only through interfaces that it
keeps to itself.
"""

import json
import logging
import socket
import threading
import time

from flask import Flask
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask, WSGITask

from retriever_server.http.app import MAX_BODY_BYTES

MAX_CONNECTIONS = 4096
POLL_S = 0.01
QUIET_POLLS = 5  # without a request: what the network had brought by then is read


class _Task(WSGITask):
    wrote_header: bool

    def build_response_header(self) -> bytes:
        if self.channel.server.ending:  # else a client that never pauses keeps the server from its end
            self.set_close_on_finish()
        head: bytes = super().build_response_header()
        return head

    def write(self, data: bytes) -> None:
        """Head and body of an answer in one packet, not in two."""
        if self.wrote_header:
            super().write(data)
            return
        head = self.build_response_header()
        self.wrote_header = True
        if self.has_body and not self.chunked_response and self.content_length == len(data):
            self.channel.write_soon(head + data)
            self.content_bytes_written = len(data)
        else:
            self.channel.write_soon(head)
            super().write(data)


class _ErrorTask(ErrorTask):
    """What is not HTTP, or more than waitress takes."""

    def execute(self) -> None:
        error = self.request.error
        code = 400 if error.code == 501 else error.code  # a transfer coding that nobody has heard of
        body = json.dumps({"error": f"{error.reason}: {error.body}", "field": "request"}).encode()
        self.status = f"{code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    task_class, error_task_class = _Task, _ErrorTask

    def writable(self) -> bool:
        """Not while a worker thread sends: the thread that polls would spin until it is done."""
        if self.requests and not self.will_close and self.total_outbufs_len <= self.adj.outbuf_high_watermark:
            return False
        return bool(super().writable())


class HttpServer:
    """Serves `app` on `listener` from threads of its own."""

    def __init__(self, app: Flask, listener: socket.socket, threads: int) -> None:
        """`threads` requests are worked on at once; more wait, in the order in which they came."""
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a request that waits is no news
        self._server = create_server(
            app,
            sockets=[listener],
            threads=threads,
            connection_limit=MAX_CONNECTIONS,
            backlog=MAX_CONNECTIONS,
            asyncore_use_poll=True,  # select() ends at 1024 descriptors
            max_request_body_size=8 * MAX_BODY_BYTES,  # above the application's limit, which comes sooner
            ident="retriever_server",
        )
        self._server.channel_class = _Channel
        self._server.ending = False

    def start(self) -> None:
        """Begin to answer; returns at once."""
        threading.Thread(target=self._server.run, name="http", daemon=True).start()

    def stop(self, grace_s: float) -> None:
        """Take no more connections, and return when every request that had come in is answered, or after
        `grace_s` seconds.
        """
        self._server.ending = True
        self._server.trigger.pull_trigger(self._close_listener)
        until, quiet = time.monotonic() + grace_s, 0
        while quiet < QUIET_POLLS and time.monotonic() < until:
            time.sleep(POLL_S)
            quiet = 0 if self._busy() else quiet + 1

    def _close_listener(self) -> None:  # in waitress' own thread: its map of sockets is not locked
        accepted = -1
        while accepted < len(self._server.active_channels):  # whoever has connected already is heard
            accepted = len(self._server.active_channels)
            self._server.handle_accept()
        self._server.del_channel()
        self._server.socket.close()

    def _busy(self) -> bool:
        channels = list(self._server.active_channels.values())
        return any(channel.requests or channel.total_outbufs_len for channel in channels)
