"""Soak: very many requests at high concurrency, clients that hang up in between, and every answer checked.

    python benchmarks/soak.py INDEX_DIR --requests 100000 --clients 256

Starts a server of its own. Each client asks for a passage by its own words and must get that passage first.
One request in twenty is sent and hung up on, before or in the middle of its answer. Half of the queries are
written as no other is, in capitals here and there, so the index's encoder must not mind them; minilm does
not. Prints requests/s, wrong and lost answers
and the server's memory; exits 1 unless 0 are wrong, 0 lost, and the memory after a third and at the end
differ by at most `--most-growth`.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import click
from serving import questions_of, rss_bytes, server

HANG_UP = 0.05
RETRIED = {503}


@dataclass
class Tally:
    """What has happened so far; `memory` is the server's after each hundredth of the requests."""

    right: int = 0
    wrong: int = 0
    lost: int = 0
    hung_up: int = 0
    refused: int = 0
    memory: list[int] = field(default_factory=list)


@dataclass
class Soak:
    """One run against one server."""

    url: str
    pid: int
    questions: list[tuple[str, str]]
    total: int
    tally: Tally = field(default_factory=Tally)
    sent: int = 0

    async def client(self, session: aiohttp.ClientSession, seed: int) -> None:
        """Ask until all is asked."""
        rng = random.Random(seed)
        while self.sent < self.total:
            self.sent += 1
            if self.sent % max(1, self.total // 100) == 0:
                self.tally.memory.append(rss_bytes(self.pid))
            query, name = self.pick(rng)
            if rng.random() < HANG_UP:
                await self.hang_up(rng, query)
            else:
                await self.ask(session, query, name, rng.randint(1, 5))

    def pick(self, rng: random.Random) -> tuple[str, str]:
        """A question; half are new to the server, by capitals that its encoder does not see."""
        query, name = rng.choice(self.questions)
        if rng.random() < 0.5:
            return query, name
        swapped = [c.swapcase() if c.isascii() and rng.random() < 0.5 else c for c in query[:60]]
        return "".join(swapped) + query[60:], name

    async def ask(self, session: aiohttp.ClientSession, query: str, name: str, count: int) -> None:
        """One request, sent again as long as the server says that it is full."""
        body = {"query": query, "top_n": count}
        try:
            while True:
                async with session.post(f"{self.url}/search", json=body) as reply:
                    if reply.status in RETRIED:
                        self.tally.refused += 1
                        await asyncio.sleep(float(reply.headers["Retry-After"]))
                        continue
                    found = await reply.json()
                    right = reply.status == 200 and len(found) == count and found[0]["id"] == name
                    break
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.tally.lost += 1
            print(f"lost: {error!r}")
            return
        self.tally.right += right
        if not right:
            self.tally.wrong += 1
            print(f"wrong: {body} wants {name}: {reply.status} {str(found)[:200]}")

    async def hang_up(self, rng: random.Random, query: str) -> None:
        """Send a request, wait a little, and close the connection hard."""
        host, port = self.url.removeprefix("http://").split(":")
        body = json.dumps({"query": query, "top_n": 100}).encode()
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await asyncio.sleep(rng.random() * 0.3)
        writer.transport.abort()
        self.tally.hung_up += 1


async def soak(run: Soak, clients: int) -> None:
    """All clients, until all is asked."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(run.client(session, seed) for seed in range(clients)))


@click.command()
@click.argument("index_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--requests", "total", default=100_000, show_default=True)
@click.option("--clients", default=256, show_default=True)
@click.option("--most-growth", default=0.05, show_default=True, help="Of the memory; a short run has more.")
@click.option("--option", "options", multiple=True, help="Of serve, for example --option=--cache-size=0.")
def main(index_dir: Path, total: int, clients: int, most_growth: float, options: tuple[str, ...]) -> None:
    """See the top of this file."""
    with server(index_dir, *options) as (process, port):
        run = Soak(f"http://127.0.0.1:{port}", process.pid, questions_of(index_dir, port, 2000), total)
        began = time.monotonic()
        asyncio.run(soak(run, clients))
        seconds = time.monotonic() - began
    tally = run.tally
    warm, end = tally.memory[len(tally.memory) // 3], tally.memory[-1]
    print(f"{total} requests, {clients} clients, {total / seconds:.0f} requests/s, {seconds:.0f} s")
    print(f"right {tally.right}, wrong {tally.wrong}, lost {tally.lost}, hung up {tally.hung_up}")
    print(f"refused with Retry-After and asked again: {tally.refused}")
    print(f"memory: {warm / 1e6:.0f} MB after a third, {end / 1e6:.0f} MB at the end ({end / warm - 1:+.1%})")
    flat = abs(end / warm - 1) <= most_growth
    sys.exit(0 if flat and tally.wrong == tally.lost == 0 else 1)


if __name__ == "__main__":
    main()
