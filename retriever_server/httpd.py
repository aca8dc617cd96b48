"""HTTP: waitress under the application, with an end that finishes what is in flight."""

import logging
import socket
import threading
import time

from flask import Flask, Response
from waitress.server import create_server

from retriever_server.app import MAX_BODY_BYTES

MAX_CONNECTIONS = 4096
POLL_S = 0.01


class HttpServer:
    """Serves `app` on `listener` from threads of its own."""

    def __init__(self, app: Flask, listener: socket.socket, threads: int) -> None:
        """`threads` requests are worked on at once; more wait, in the order in which they came."""
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a request that waits is no news
        self._ending = False
        app.after_request(self._close_when_ending)
        self._server = create_server(
            app,
            sockets=[listener],
            threads=threads,
            connection_limit=MAX_CONNECTIONS,
            backlog=MAX_CONNECTIONS,
            asyncore_use_poll=True,  # select() ends at 1024 descriptors
            max_request_body_size=8 * MAX_BODY_BYTES,  # above the application's limit, whose answer is JSON
            ident="retriever_server",
        )

    def start(self) -> None:
        """Begin to answer; returns at once."""
        threading.Thread(target=self._server.run, name="http", daemon=True).start()

    def stop(self, grace_s: float) -> None:
        """Take no more connections, and return when every request that had come in is answered, or after
        `grace_s` seconds.
        """
        self._ending = True
        self._server.trigger.pull_trigger(self._close_listener)
        until = time.monotonic() + grace_s
        while self._busy() and time.monotonic() < until:
            time.sleep(POLL_S)

    def _close_listener(self) -> None:  # in waitress' own thread: its map of sockets is not locked
        self._server.del_channel()
        self._server.socket.close()

    def _busy(self) -> bool:
        channels = list(self._server.active_channels.values())
        return any(channel.requests or channel.total_outbufs_len for channel in channels)

    def _close_when_ending(self, response: Response) -> Response:
        if self._ending:  # else a client that never pauses keeps the server from its end
            response.headers["Connection"] = "close"
        return response
