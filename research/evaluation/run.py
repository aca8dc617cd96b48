"""One evaluation in one folder: config.yaml, predictions.jsonl, timings.jsonl, metrics.json, report.html.

Started again with the same folder it goes on: no question is asked twice.
"""

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from tqdm import tqdm

from research.datasets.questions import Question
from research.episode.loop import SearchError, SearchFunction
from research.episode.trajectory import Passage, Trajectory
from research.evaluation.config import EvaluationConfig, EvaluationError, read_config
from research.evaluation.datasets import digest, read_datasets, tasks
from research.evaluation.engines import opened
from research.evaluation.engines.identity import model_identity
from research.evaluation.outputs.folder import Free, check_same
from research.evaluation.outputs.judging import JUDGEMENTS, judge_all, judge_metrics
from research.evaluation.outputs.predictions import Predictions, failures, key_of, read_predictions
from research.evaluation.outputs.report import write_report
from research.evaluation.outputs.summary import markdown, summarise, write_summary
from research.evaluation.runner import Runner, Task
from research.judge import read_verdicts
from research.model_server import JsonServer, ServerError
from research.processes import alone_in
from research.tools.search import RetrieverClient

NAMED = 5  # failures in a warning
HOPELESS = 32  # questions in a row from the start that all failed: something is wrong with all of them
# What may differ when a run goes on: how it is carried out, not what is asked.
FREE = Free(
    keys={"concurrency", "question_timeout", "judge"},
    within={
        "engine": {
            "api_key_variable",
            "timeout",
            "deadline",
            "gpu_memory_utilization",
            "tensor_parallel_size",
        },
        "retriever": {"url", "timeout", "deadline", "connections", "cache_size"},
    },
)


class Outcome(NamedTuple):
    """The table of the figures, as Markdown, and why they say nothing, if so."""

    table: str
    fault: str | None


def evaluate(config: DictConfig, run_dir: Path) -> Outcome:
    """Do the evaluation, or the rest of it.

    Raises EvaluationError with the one-line reason. What is finished stays, whatever happens; what failed is
    asked again by the next run with this folder.
    """
    read = read_config(config)
    datasets = read_datasets(read.datasets, read.limit)
    identity = _identity(read, datasets)
    with alone_in(run_dir, EvaluationError):
        check_same(run_dir, config, identity, FREE)
        predictions = Predictions(run_dir)
        todo = [task for task in tasks(datasets, read) if task.key not in predictions.done]
        order = [task.key for task in tasks(datasets, read)]
        began = time.monotonic()
        if todo:
            asyncio.run(_ask(read, todo, predictions, len(order)))
        _tell_rate(len(todo), time.monotonic() - began)
        predictions.sort(order)
        asyncio.run(judge_all(read.judge, run_dir))
        return _conclude(run_dir, read, identity)


def _conclude(run_dir: Path, config: EvaluationConfig, identity: dict[str, Any]) -> Outcome:
    """Write metrics.json and report.html from the other files."""
    verdicts = read_verdicts(run_dir / JUDGEMENTS)
    scores = {
        key_of(each): each.metrics | judge_metrics(config.judge, verdicts, each)
        for each in read_predictions(run_dir)
    }
    summary = summarise(scores, identity)
    write_summary(run_dir, summary)
    write_report(run_dir)
    return Outcome(markdown(summary["results"]), _fault(run_dir))


def _fault(run_dir: Path) -> str | None:
    """Warn of questions and searches that failed; the message, where all of either did."""
    for what, total, failed in failures(run_dir):
        if failed:
            named = ", ".join(failed[:NAMED]) + (", ..." if len(failed) > NAMED else "")
            message = f"{len(failed)} of {total} {what} failed: {named}"
            if len(failed) == total:
                return f"{message}. The figures say nothing about the model; run again to ask again"
            print(f"WARNING: {message}", file=sys.stderr)
    return None


async def _ask(config: EvaluationConfig, todo: list[Task], predictions: Predictions, total: int) -> None:
    client = RetrieverClient(config.retriever)
    search = _ending(client)
    try:
        if set(config.methods) - {"direct"}:
            with suppress(SearchError):  # before a model is loaded; what fails for one question alone may
                await search(todo[0].question.question)
        async with opened(config.engine, config.sampling) as engine:
            with _Progress(predictions, total) as progress:
                await Runner(config, engine, search).run(todo, progress.finished)
    except* (EvaluationError, OSError) as group:  # OSError: of a full disk, say
        raise _first(group) from None
    finally:
        await client.close()


def _ending(client: RetrieverClient) -> SearchFunction:
    """Searches of the client; one that fails as all others would ends the evaluation."""

    async def search(query: str) -> list[Passage]:
        try:
            return await client(query)
        except SearchError as error:
            if error.lasting:
                raise EvaluationError(f"every search would fail: {error}") from error
            raise

    return search


def _first(group: BaseExceptionGroup) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Progress:
    """Records what is finished; shows the bar with the rate, the EM so far, and the failures."""

    def __init__(self, predictions: Predictions, total: int) -> None:
        self._predictions = predictions
        self._seen, self._failed = 0, 0
        self._right = sum(row["em"] for row in predictions.done.values())
        self._bar = tqdm(total=total, initial=len(predictions.done), unit="question", smoothing=0.05)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def finished(self, trajectory: Trajectory, seconds: float) -> None:
        self._seen += 1
        self._failed += "error" in trajectory.metadata
        if self._failed == self._seen == HOPELESS:
            reason = trajectory.metadata["error"]
            raise EvaluationError(f"the first {HOPELESS} questions all failed, the last by: {reason}")
        self._predictions.add(trajectory, seconds)
        self._right += trajectory.metrics["em"]
        share = self._right / len(self._predictions.done)
        self._bar.set_postfix_str(f"EM {share:.3f}, {self._failed} failed", refresh=False)
        self._bar.update()


def _identity(config: EvaluationConfig, datasets: dict[str, list[Question]]) -> dict[str, Any]:
    """What the figures hang on, besides the configuration: stands in metrics.json."""
    return {
        **model_identity(config.engine),
        "retriever": _retriever_identity(config) if set(config.methods) - {"direct"} else None,
        "questions": {label: len(questions) for label, questions in datasets.items()},
        "questions_sha256": {label: digest(questions) for label, questions in datasets.items()},
    }


def _retriever_identity(config: EvaluationConfig) -> dict[str, Any]:
    """What the retriever says of itself; only that it answers, of one that says nothing."""
    url = config.retriever.url
    try:
        said = asyncio.run(_health(url, config.retriever.timeout))
    except ServerError as error:
        if error.status == 503:
            raise EvaluationError(f"the retriever at {url} is still loading: try again later") from error
        if error.status is None:
            raise EvaluationError(f"no retriever answers at {url}: {error}; is it running?") from error
        said = None
    if not isinstance(said, dict):
        return {"index": "unknown"}  # Search-R1's server has no /health
    names = ("index", "encoder", "dimension", "count", "fingerprint")
    return {name: said.get(name) for name in names} | {"top_k": config.retriever.top_k}


async def _health(url: str, timeout: float) -> Any:
    server = JsonServer(url, timeout, deadline=0)
    try:
        return await server.call("/health")
    finally:
        await server.close()


def _tell_rate(asked: int, seconds: float) -> None:
    if asked:
        print(f"{asked:,} questions in {seconds:.0f} s, {asked / seconds:.1f} a second", file=sys.stderr)
