"""Ceiling: a server that answers every request at once, to see what the bench client itself can do.

python -m retriever_server bench --ceiling --queries my.questions.jsonl
"""

import asyncio
import json
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

PASSAGES, SCORES = [{"id": "1", "contents": "Title\n" + "word " * 100}], [0.5]  # as long as a real passage
ENTRIES = [{"document": PASSAGES[0], "score": SCORES[0]}]


@contextmanager
def instant_server(top_k: int, batch: int) -> Iterator[str]:
    """A process that answers the same `top_k` passages to each of `batch` queries; yields its address."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sending, _answers(top_k, batch)), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{receiving.recv()}"
    finally:
        process.terminate()
        process.join()


def _answers(top_k: int, batch: int) -> dict[bytes, bytes]:
    """The whole HTTP answer for each path."""
    answers = {
        b"/search": [PASSAGES * top_k, SCORES * top_k],
        b"/batch_search": [[PASSAGES * top_k] * batch, [SCORES * top_k] * batch],
        b"/retrieve": {"result": [ENTRIES * top_k] * batch},
    }
    return {path: _http(json.dumps(answer).encode()) for path, answer in answers.items()}


def _http(content: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def _serve(sending: Connection, answers: dict[bytes, bytes]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the client, which ends this process

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _request_head(reader):
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            writer.write(answers[head.split(b" ", 2)[1]])
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
        sending.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


async def _request_head(reader: asyncio.StreamReader) -> bytes:
    """The lines before a body; nothing when the client has hung up."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
