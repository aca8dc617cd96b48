"""Connection: HTTP requests of the bench client, one at a time over one connection.

A library's client takes some 0.4 ms of a core a request, which a server on the same cores lacks, and a fast
server lacks most. This one leaves the parsing to httptools and everything else out: 0.05 ms.
"""

import asyncio
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools


class Answer(NamedTuple):
    """Of a request: the status, and the whole body."""

    status: int
    content: bytes


class Connection:
    """Kept open between requests, and opened again after an error or when the server has closed it."""

    def __init__(self, url: str) -> None:
        """POSTs go to `url`, http or https."""
        parts = urlsplit(url)
        self._host, self._secure = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._head = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._protocol: _Http | None = None

    async def post(self, body: bytes) -> Answer:
        """The answer to `body`. Raises OSError when the connection fails or what comes is not HTTP."""
        try:
            if self._protocol is None or self._protocol.closed:
                loop = asyncio.get_running_loop()
                _, self._protocol = await loop.create_connection(
                    _Http, self._host, self._port, ssl=self._secure or None
                )
            return await self._protocol.ask(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        except BaseException:  # an answer that comes later belongs to no request
            self.close()
            raise

    def close(self) -> None:
        """Close it, if it is open."""
        if self._protocol is not None:
            self._protocol.close()
            self._protocol = None


class _Http(asyncio.Protocol):
    closed = False

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    async def ask(self, request: bytes) -> Answer:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.closed = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._fail(str(error or "closed by the server"))

    def on_message_begin(self) -> None:
        """Called by the parser, as those that follow."""
        self._chunks = []

    def on_body(self, chunk: bytes) -> None:
        """A part of the answer."""
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self.closed = self.closed or not self._parser.should_keep_alive()
        with suppress(asyncio.InvalidStateError):  # nobody waits any more
            self._answer.set_result(Answer(self._parser.get_status_code(), b"".join(self._chunks)))

    def _fail(self, reason: str) -> None:
        with suppress(asyncio.InvalidStateError):
            self._answer.set_exception(ConnectionError(reason))
            self._answer.exception()  # seen, should nobody wait for it
