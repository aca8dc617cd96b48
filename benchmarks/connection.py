"""Connection: HTTP requests of the bench client, one at a time over one connection.

By hand: a library's client takes some 0.4 ms of CPU per request, which a server on the same cores lacks, a
fast one most. This one leaves the parsing to httptools and the rest out, and takes a fifth of that.
"""

import asyncio
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

READ_BYTES = 1 << 18


class HttpReply(NamedTuple):
    """Status and whole body."""

    status: int
    content: bytes


class HttpConnection:
    """Kept open between requests, and reopened after an error or when the server has closed it."""

    def __init__(self, url: str) -> None:
        """Send POST requests to `url`, http or https."""
        parts = urlsplit(url)
        self._host, self._secure = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._head = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> HttpReply:
        """The reply to `body`; OSError when the connection fails or what comes is not HTTP."""
        try:
            if self._streams is None or self._streams[0].at_eof():
                self.close()
                self._streams = await asyncio.open_connection(
                    self._host, self._port, ssl=self._secure or None
                )
            reader, writer = self._streams
            writer.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
            message = _Message()
            parser = httptools.HttpResponseParser(message)
            while not message.complete:
                data = await reader.read(READ_BYTES)
                if not data:
                    raise ConnectionError("closed by the server")
                parser.feed_data(data)
            if not parser.should_keep_alive():
                self.close()
            return HttpReply(parser.get_status_code(), b"".join(message.chunks))
        except httptools.HttpParserError as error:
            self.close()
            raise ConnectionError(f"not HTTP: {error}") from error
        except BaseException:  # a reply that comes later belongs to no request
            self.close()
            raise

    def close(self) -> None:
        """Close the connection if it is open."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


class _Message:
    """What the parser has read so far; it calls the methods."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.complete = False

    def on_body(self, chunk: bytes) -> None:
        self.chunks.append(chunk)

    def on_message_complete(self) -> None:
        self.complete = True
