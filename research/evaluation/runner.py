"""Answer all questions with one engine and one retriever; a failed question counts as wrong."""

import itertools
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from research.datasets.questions import Question
from research.episode.tools import SEARCH, SearchFunction, Tool, search_tool
from research.episode.trajectory import Trajectory, well_formed
from research.evaluation.at_once import Failed, at_once, attempt
from research.evaluation.config import EvaluationConfig, evaluation_errors
from research.evaluation.engines import Engine, Sample, Stops, tokens_of
from research.evaluation.methods import get_method
from research.evaluation.methods.calls import MethodTools
from research.evaluation.outputs.predictions import PredictionKey
from research.evaluation.outputs.scoring import score
from research.tools import read_tools


@dataclass(frozen=True)
class Task:
    """One question of a data set, to be answered by a method."""

    dataset: str
    method: str
    question: Question

    @property
    def key(self) -> PredictionKey:
        """See `PredictionKey`."""
        return PredictionKey(well_formed(self.dataset), self.method, well_formed(self.question.id))


@dataclass(frozen=True)
class Runner:
    """Answers tasks with one engine and one retriever."""

    config: EvaluationConfig
    engine: Engine
    search: SearchFunction

    async def run(self, tasks: Iterable[Task], finished: Callable[[Trajectory, float], None]) -> None:
        """Answer all; `finished` gets each trajectory as it ends, with the seconds it took.

        Raises what ends the whole evaluation: EvaluationError, and what `finished` raises.
        """
        tools = self._tools()
        tokens = tokens_of(self.engine, self.config.protocol, self.config.prompt, tools)

        async def answer(task: Task) -> None:
            began = time.perf_counter()
            given = MethodTools(self._sampler(task), self.search, tools, tokens, self.config)
            work = get_method(task.method)(task.question.question, given)
            trajectory = await attempt(work, self.config.question_timeout, "answer")
            if isinstance(trajectory, Failed):
                metadata = {"prediction": "", "error": trajectory.reason}
                trajectory = Trajectory(prompt_ids=[], metadata=metadata)
            trajectory.metadata = {**_metadata(task), **trajectory.metadata}
            score(trajectory, tokens.protocol)
            finished(trajectory, time.perf_counter() - began)

        await at_once(tasks, self.config.concurrency, answer)

    def _tools(self) -> list[Tool]:
        """The tools of the configuration, with our own search: its failures may end the evaluation."""
        with evaluation_errors():
            tools = read_tools(self.config.tools, self.config.retriever)
        return [search_tool(self.search) if tool.name == SEARCH else tool for tool in tools]

    def _sampler(self, task: Task) -> Sample:
        """The engine for one question; each call has a seed that depends on this question alone."""
        seeds = itertools.count(zlib.crc32(repr((self.config.sampling.seed, *task.key)).encode()) + 1)

        async def sample(token_ids: list[int], max_tokens: int, stops: Stops) -> list[int]:
            return await self.engine.generate(token_ids, max_tokens, stops, next(seeds))

        return sample


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
