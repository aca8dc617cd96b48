"""Answer all questions with one engine and one retriever; a failed question counts as wrong."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from research.datasets.questions import Question
from research.environments import EpisodeSettings, Row, environment_class, make_environment
from research.environments.question_answering import Environment
from research.episode.tools import SearchFunction, Tool, search_tool
from research.episode.trajectory import Trajectory, well_formed
from research.evaluation.at_once import Failed, at_once, attempt
from research.evaluation.config import EvaluationConfig, EvaluationError, evaluation_errors
from research.evaluation.engines import Engine, sampler, seed_of, tokens_of
from research.evaluation.methods import load_method
from research.evaluation.methods.calls import Calls
from research.evaluation.outputs.predictions import PredictionKey
from research.evaluation.outputs.scoring import set_metrics
from research.tools.wikipedia_search import wikipedia_tool

BUILT_IN = {"search": search_tool, "wikipedia_search": wikipedia_tool}
"""Tools that search, by their name in ``research.tools``"""


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
        environment = environment_of(self.config)
        environment.tools = [self._with_our_search(tool) for tool in environment.tools]
        tokens = tokens_of(self.engine, environment.protocol, self.config.prompt, environment.tools)

        async def answer(task: Task) -> None:
            began = time.perf_counter()
            sample = sampler(self.engine, seed_of(self.config.sampling.seed, *task.key) + 1)
            question, row = task.question.question, _row(task, environment)
            calls = Calls(question, row, sample, self.search, tokens, self.config, environment)
            work = load_method(task.method)(calls)
            trajectory = await attempt(work, self.config.question_timeout, "answer")
            if isinstance(trajectory, Failed):
                metadata = {"prediction": "", "error": trajectory.reason}
                trajectory = Trajectory(prompt_ids=[], metadata=metadata)
            trajectory.metadata = {**_metadata(task), **trajectory.metadata}
            set_metrics(trajectory)
            finished(trajectory, time.perf_counter() - began)

        await at_once(tasks, self.config.concurrency, answer)

    def _with_our_search(self, tool: Tool) -> Tool:
        """Built-in tools search with ours, whose failures may end the evaluation; others stay as they are."""
        given = self.config.tools
        named = [given] if isinstance(given, str) else list(given)
        return BUILT_IN[tool.name](self.search) if tool.name in BUILT_IN and tool.name in named else tool


def environment_of(config: EvaluationConfig) -> Environment:
    """The environment that reads the questions and plays them. Raises EvaluationError."""
    settings = EpisodeSettings(
        config.prompt, "exact_match", config.protocol, config.limits, config.retriever, config.tools
    )
    with evaluation_errors():
        section = {"environment": config.environment}
        if not issubclass(environment_class(section), Environment):
            raise ValueError(f"environment: {config.environment} asks no questions")
        return cast(Environment, make_environment(section, settings))


def _row(task: Task, environment: Environment) -> Row:
    """The question as training plays it: one row without controls. Raises EvaluationError."""
    rows = environment.rows({"train": [], "test": [task.question]}, 0, Path(task.dataset))["test"]
    if len(rows) != 1:
        raise EvaluationError(
            f"question {task.question.id}: the environment makes {len(rows)} rows of it, not one"
        )
    return rows[0]


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
