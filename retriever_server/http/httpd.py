"""WSGI server: waitress, with errors as JSON and a shutdown that answers what has already come in.

Of the servers that can share a process with the model (cheroot, gevent, granian, gunicorn's threads) only
granian uses less CPU per request, 0.13 ms against 0.18 with Flask included, and only through private
interfaces. The subclasses below use waitress internals for three things that it has no options for; see
docs/retriever.md for timings.
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
QUIET_POLLS = 5  # consecutive polls without a request, after which all that was on the network has been read


class _Task(WSGITask):
    wrote_header: bool

    def write(self, data: bytes) -> None:
        """Send head and body in one packet instead of two."""
        if self.channel.server.ending:  # otherwise a client that never pauses would keep the server running
            self.set_close_on_finish()
        if self.wrote_header or self.content_length != len(data):
            super().write(data)
            return
        self.channel.write_soon(self.build_response_header() + data)
        self.wrote_header, self.content_bytes_written = True, len(data)


class _ErrorTask(ErrorTask):
    def execute(self) -> None:
        """Answer what is not HTTP, or exceeds waitress' limits."""
        error = self.request.error
        code = 400 if error.code == 501 else error.code  # 501: an unknown transfer coding
        body = json.dumps({"error": f"{error.reason}: {error.body}", "field": "request"}).encode()
        self.status = f"{code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    task_class, error_task_class = _Task, _ErrorTask

    def writable(self) -> bool:
        """False while a worker thread is sending: the polling thread would spin until it has finished."""
        if self.requests and not self.will_close and self.total_outbufs_len <= self.adj.outbuf_high_watermark:
            return False
        return bool(super().writable())


class HttpServer:
    """Serves `app` on `listener`, in its own threads."""

    def __init__(self, app: Flask, listener: socket.socket, threads: int) -> None:
        """Handle `threads` requests at once; more wait in the order of their arrival."""
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a waiting request is not worth a line
        self._server = create_server(
            app,
            sockets=[listener],
            threads=threads,
            connection_limit=MAX_CONNECTIONS,
            backlog=MAX_CONNECTIONS,
            asyncore_use_poll=True,  # select() ends at 1024 descriptors
            max_request_body_size=8 * MAX_BODY_BYTES,  # above the application's limit, which applies first
            ident="retriever_server",
        )
        self._server.channel_class = _Channel
        self._server.ending = False

    def start(self) -> None:
        """Begin to answer; returns at once."""
        threading.Thread(target=self._server.run, name="http", daemon=True).start()

    def stop(self, grace_s: float) -> None:
        """Accept no more connections; return once all requests are answered, or after `grace_s` seconds."""
        self._server.ending = True
        self._server.trigger.pull_trigger(self._close_listener)
        until, quiet = time.monotonic() + grace_s, 0
        while quiet < QUIET_POLLS and time.monotonic() < until:
            time.sleep(POLL_S)
            channels = list(self._server.active_channels.values())
            busy = any(channel.requests or channel.total_outbufs_len for channel in channels)
            quiet = 0 if busy else quiet + 1

    def _close_listener(self) -> None:  # runs in waitress' thread: its map of sockets is not locked
        accepted = -1
        while accepted < len(self._server.active_channels):  # serve whoever has already connected
            accepted = len(self._server.active_channels)
            self._server.handle_accept()
        self._server.del_channel()
        self._server.socket.close()
