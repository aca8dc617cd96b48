"""Trajectories that go their own way against a batch whose every turn waits for the slowest: questions a
second.

    python -m benchmarks.evaluation_barrier --model runs/mine/policy --retriever http://127.0.0.1:8000 \
        --questions test.questions.jsonl --count 512

Both ask the same questions of the same engine (vLLM here) and retriever with the very search loop of
training. To each search a latency is added, uniform from --fastest to --slowest, the same for the same query
in both. The baseline is what most evaluation scripts do: a batch of --concurrency questions samples, all of
it searches, all of it samples again, and the next batch begins when the last question of this one has its
answer. The two take turns.
"""

import asyncio
import json
import random
import statistics
import time
from pathlib import Path

import click

from research.datasets.questions import Question, read_questions
from research.episode.tools import SearchFunction
from research.episode.trajectory import Passage, Trajectory
from research.evaluation.config import EvaluationConfig, compose_multihop, read_multihop
from research.evaluation.engines import Engine, Stops
from research.evaluation.engines.opening import opened
from research.evaluation.runner import Runner, Task
from research.tools.search import RetrieverClient


class Barrier:
    """Lets its `active` parties go on together, when all who have not left are waiting."""

    def __init__(self, active: int) -> None:
        self._active = active
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Until all are here."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._release()
        await mine

    def leave(self) -> None:
        """One party has ended."""
        self._active -= 1
        self._release()

    def _release(self) -> None:
        if len(self._waiting) >= self._active:
            for future in self._waiting:
                future.set_result(None)
            self._waiting.clear()


class BarredEngine:
    """An engine whose callers all wait for the slowest."""

    def __init__(self, engine: Engine, barrier: Barrier) -> None:
        self.tokenizer, self.max_model_len = engine.tokenizer, engine.max_model_len
        self._engine, self._barrier = engine, barrier

    async def generate(self, token_ids: list[int], max_tokens: int, stops: Stops, seed: int) -> list[int]:
        """See `Engine`."""
        sampled = await self._engine.generate(token_ids, max_tokens, stops, seed)
        await self._barrier.wait()
        return sampled

    async def close(self) -> None:
        """See `Engine`."""


def slowed(search: SearchFunction, fastest: float, slowest: float) -> SearchFunction:
    """The search with a latency that its query decides, in seconds."""

    async def search_late(query: str) -> list[Passage]:
        await asyncio.sleep(random.Random(query).uniform(fastest, slowest))
        return await search(query)

    return search_late


async def free(
    config: EvaluationConfig, engine: Engine, search: SearchFunction, tasks: list[Task]
) -> list[Trajectory]:
    """The evaluation's own way."""
    done: list[Trajectory] = []
    await Runner(config, engine, search).run(tasks, lambda trajectory, seconds: done.append(trajectory))
    return done


async def barred(
    config: EvaluationConfig, engine: Engine, search: SearchFunction, tasks: list[Task]
) -> list[Trajectory]:
    """Batch by batch, turn by turn."""
    done: list[Trajectory] = []
    for start in range(0, len(tasks), config.concurrency):
        batch = tasks[start : start + config.concurrency]
        barrier = Barrier(len(batch))

        async def search_together(query: str, barrier: Barrier = barrier) -> list[Passage]:
            passages = await search(query)
            await barrier.wait()
            return passages

        def finished(trajectory: Trajectory, seconds: float, barrier: Barrier = barrier) -> None:
            done.append(trajectory)
            barrier.leave()

        await Runner(config, BarredEngine(engine, barrier), search_together).run(batch, finished)
    return done


async def measure(
    config: EvaluationConfig, questions: list[Question], rounds: int, fastest: float, slowest: float
) -> None:
    """Print the rates of each round, and the ratio of the medians."""
    tasks = [Task("questions", "research", question) for question in questions]
    rates: dict[str, list[float]] = {"barrier": [], "free": []}
    async with opened(config.engine, config.sampling) as engine:
        for number in range(-1, rounds):  # the first only warms up
            for name, way in (("barrier", barred), ("free", free)):
                search = RetrieverClient(config.retriever)
                began = time.monotonic()
                done = await way(config, engine, slowed(search, fastest, slowest), tasks)
                seconds = time.monotonic() - began
                await search.close()
                em = statistics.mean(each.metrics["em"] for each in done)
                if number >= 0:
                    rates[name].append(len(done) / seconds)
                row = {
                    "way": name,
                    "round": number,
                    "questions_per_s": round(len(done) / seconds, 2),
                    "em": em,
                }
                print(json.dumps(row), flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["free"] / medians["barrier"]
    print(f"free {medians['free']:.1f}, barrier {medians['barrier']:.1f} questions/s: {ratio:.2f}x")


@click.command()
@click.option("--model", required=True)
@click.option("--retriever", required=True)
@click.option("--questions", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--count", default=512, show_default=True)
@click.option("--concurrency", default=128, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--fastest", default=0.005, show_default=True, help="Seconds.")
@click.option("--slowest", default=0.5, show_default=True, help="Seconds.")
def main(
    model: str,
    retriever: str,
    questions: Path,
    count: int,
    concurrency: int,
    rounds: int,
    fastest: float,
    slowest: float,
) -> None:
    """See the top of this file."""
    words = [f"engine.model='{model}'", f"retriever.url='{retriever}'", f"concurrency={concurrency}"]
    config = read_multihop(compose_multihop([*words, "retriever.cache_size=0"], model))
    asyncio.run(measure(config, read_questions(questions)[:count], rounds, fastest, slowest))


if __name__ == "__main__":
    main()
