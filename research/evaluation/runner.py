"""Ask all questions at once, as far as `concurrency` allows: each goes its own way, and no question waits for
another. A failed one is recorded as failed, and counts as wrong.
"""

import asyncio
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from research.datasets.questions import Question
from research.episode.tokens import TokenProtocol
from research.episode.tools import SearchFunction
from research.episode.trajectory import Trajectory, well_formed
from research.evaluation.config import EvaluationConfig, EvaluationError
from research.evaluation.engines import Engine, Stops, tokens_of
from research.evaluation.methods import Tools, get_method
from research.evaluation.outputs.predictions import Key
from research.evaluation.outputs.scoring import score


@dataclass(frozen=True)
class Task:
    """One question of a data set, to be answered by a method."""

    dataset: str
    method: str
    question: Question

    @property
    def key(self) -> Key:
        """See `Key`."""
        return Key(well_formed(self.dataset), self.method, well_formed(self.question.id))


@dataclass(frozen=True)
class Runner:
    """Answers tasks with one engine and one retriever."""

    config: EvaluationConfig
    engine: Engine
    search: SearchFunction

    async def run(self, tasks: Iterable[Task], finished: Callable[[Trajectory, float], None]) -> None:
        """Answer all; `finished` is told of each trajectory, and the seconds it took, as it ends.

        Raises what ends the whole evaluation: EvaluationError, and what `finished` raises. What a question
        costs alone is recorded with it.
        """
        waiting = iter(tasks)
        tokens = tokens_of(self.engine, self.config.protocol, self.config.prompt)
        async with asyncio.TaskGroup() as group:
            for _ in range(self.config.concurrency):
                group.create_task(self._worker(waiting, tokens, finished))

    async def _worker(
        self, waiting: Iterator[Task], tokens: TokenProtocol, finished: Callable[[Trajectory, float], None]
    ) -> None:
        for task in waiting:  # shared: each worker takes the next
            began = time.perf_counter()
            trajectory = await self._answer(task, tokens)
            finished(trajectory, time.perf_counter() - began)

    async def _answer(self, task: Task, tokens: TokenProtocol) -> Trajectory:
        tools = Tools(_Sampler(self, task).sample, self.search, tokens, self.config)
        try:
            async with asyncio.timeout(self.config.question_timeout):
                trajectory = await get_method(task.method)(task.question.question, tools)
        except TimeoutError:
            trajectory = _failed(f"no answer in {self.config.question_timeout} s")
        except EvaluationError:
            raise
        except Exception as error:  # whatever it is, it is this question's alone: the others go on
            trajectory = _failed(f"{type(error).__name__}: {error}")
        trajectory.metadata = {**_metadata(task), **trajectory.metadata}
        score(trajectory, self.config.protocol)
        return trajectory


class _Sampler:
    """The engine for one question. Each call has a seed of its own: the question's, whatever is asked beside
    it.
    """

    def __init__(self, runner: Runner, task: Task) -> None:
        self._engine = runner.engine
        self._seed = zlib.crc32(repr((runner.config.sampling.seed, *task.key)).encode())

    async def sample(self, token_ids: list[int], max_tokens: int, stops: Stops) -> list[int]:
        self._seed += 1
        return await self._engine.generate(token_ids, max_tokens, stops, self._seed)


def _metadata(task: Task) -> dict[str, Any]:
    question = task.question
    return {
        **task.key._asdict(),
        "question": question.question,
        "golden_answers": list(question.golden_answers),
        "hops": question.hops,
        "supporting_ids": question.supporting_ids,
        "supporting_titles": question.supporting_titles,
    }


def _failed(reason: str) -> Trajectory:
    return Trajectory(prompt_ids=[], metadata={"prediction": "", "error": " ".join(reason.split())[:500]})
