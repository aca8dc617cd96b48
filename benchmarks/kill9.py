"""Kill -9: the server is killed and started again while clients work; in the end all have their answers.

    python benchmarks/kill9.py INDEX_DIR --clients 64 --questions 50 --kills 3

The clients are research.tools.search, the one that training uses, with its own retries. Prints right,
wrong and failed searches and how long each restart took; exits 1 unless every search was answered rightly.
"""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import click
from serving import questions_of, start

from research.episode.tools import SearchError
from research.tools.search import RetrieverClient, RetrieverConfig

DEADLINE_S = 300.0


async def searches(url: str, questions: list[tuple[str, str]]) -> list[str]:
    """What went wrong for one client that asks all `questions`, one after the other; empty if nothing."""
    client = RetrieverClient(RetrieverConfig(url=url, top_k=1, deadline=DEADLINE_S))
    wrong = []
    for query, name in questions:
        try:
            [passage] = await client(query)
            if passage.id != name:
                wrong.append(f"{query[:60]!r} found {passage.id}, not {name}")
        except (SearchError, ValueError) as error:
            wrong.append(f"{query[:60]!r}: {error}")
    await client.close()
    return wrong


async def kill_and_start(
    process: subprocess.Popen[str], index: Path, port: int, kills: int, pause_s: float
) -> subprocess.Popen[str]:
    """Kill the server, start it on the same port, let it work for a while; the last process."""
    for _ in range(kills):
        await asyncio.sleep(pause_s)
        process.kill()
        await asyncio.to_thread(process.wait)
        began = time.monotonic()
        process, _ = await asyncio.to_thread(start, index, port=port)
        print(f"killed, and ready again after {time.monotonic() - began:.1f} s", flush=True)
    return process


async def run(index: Path, clients: int, count: int, kills: int, pause_s: float) -> list[str]:
    """What went wrong, over all clients."""
    process, port = start(index)
    asked = questions_of(index, port, clients * count)
    parts = [asked[number::clients] for number in range(clients)]
    killing = asyncio.create_task(kill_and_start(process, index, port, kills, pause_s))
    wrong = await asyncio.gather(*(searches(f"http://127.0.0.1:{port}", part) for part in parts))
    process = await killing
    process.terminate()
    process.wait()
    print(f"{sum(map(len, parts))} searches by {clients} clients, {sum(map(len, wrong))} wrong or failed")
    return [line for lines in wrong for line in lines]


@click.command()
@click.argument("index_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--clients", default=64, show_default=True)
@click.option("--questions", default=50, show_default=True, help="Searches a client.")
@click.option("--kills", default=3, show_default=True)
@click.option("--pause", default=1.0, show_default=True, help="Seconds of work before each kill.")
def main(index_dir: Path, clients: int, questions: int, kills: int, pause: float) -> None:
    """See the top of this file."""
    wrong = asyncio.run(run(index_dir, clients, questions, kills, pause))
    print("\n".join(wrong[:20]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
