"""Ceiling: a server that answers every request at once, to see what the bench client itself can do.

    python -m benchmarks.ceiling &        # prints "ready: URL"
    python -m retriever_server bench --url URL --queries my.questions.jsonl

It speaks all wire formats of `bench`; `--top-k` and `--batch` must be those of the bench.
"""

import asyncio
import json

import click

PASSAGE, SCORE = {"id": "1", "contents": "Title\n" + "word " * 100}, 0.5  # as long as a real passage


@click.command()
@click.option("--top-k", default=5, show_default=True)
@click.option("--batch", default=1, show_default=True)
def main(top_k: int, batch: int) -> None:
    """See the top of this file."""
    asyncio.run(serve(answers(top_k, batch)))


def answers(top_k: int, batch: int) -> dict[bytes, bytes]:
    """The whole HTTP answer for each path."""
    documents, scores = [PASSAGE] * top_k, [SCORE] * top_k
    bodies = {
        b"/search": [documents, scores],
        b"/batch_search": [[documents] * batch, [scores] * batch],
        b"/retrieve": {"result": [[{"document": PASSAGE, "score": SCORE}] * top_k] * batch},
    }
    return {path: http_answer(json.dumps(body).encode()) for path, body in bodies.items()}


def http_answer(body: bytes) -> bytes:
    """The body with the head of its answer."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def serve(by_path: dict[bytes, bytes]) -> None:
    """Answer until the process is ended."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
                writer.write(by_path[head.split(b" ", 2)[1]])
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
    click.echo(f"ready: http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


if __name__ == "__main__":
    main()
