"""One evaluation in one folder: config.yaml, predictions.jsonl, timings.jsonl, metrics.json, report.html.

Started again with the same folder it resumes: no finished question is asked again.
"""

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from research.datasets.questions import Question
from research.episode.tools import SearchError, SearchFunction
from research.episode.trajectory import Passage, Trajectory
from research.errors import warn
from research.evaluation.at_once import Progress
from research.evaluation.config import EvaluationConfig, EvaluationError, read_multihop, trained_retriever
from research.evaluation.datasets import digest, read_datasets, tasks
from research.evaluation.engines.identity import model_identity
from research.evaluation.engines.opening import opened
from research.evaluation.outputs.folder import RUNTIME_KEYS, check_same
from research.evaluation.outputs.judging import judge_all, judge_metrics
from research.evaluation.outputs.predictions import Predictions, failures, prediction_key, read_predictions
from research.evaluation.outputs.report import write_report
from research.evaluation.outputs.summary import markdown, summarise, write_summary
from research.evaluation.runner import Runner, Task
from research.model_server import JsonServer, ServerError
from research.processes import alone_in
from research.tools.search import IDENTITY, RetrieverClient

NAMED = 5  # failures in a warning
# What may differ when a run is resumed: how it is carried out, not what is asked.
FREE = RUNTIME_KEYS | {"judge"}
FREE |= {f"retriever.{key}" for key in ("url", "timeout", "deadline", "connections", "cache_size")}


class Outcome(NamedTuple):
    """The table of the figures as Markdown, and, if they are meaningless, the reason."""

    table: str
    fault: str | None


def evaluate(config: DictConfig, run_dir: Path) -> Outcome:
    """Run the evaluation, or the rest of it. Raises EvaluationError with a one-line reason.

    What is finished stays, whatever happens; what failed is asked again by the next run in this folder.
    """
    read = read_multihop(config)
    datasets = read_datasets(read)
    identity = _identity(read, datasets)
    _warn_of_another_index(read, identity["retriever"])
    with alone_in(run_dir, EvaluationError):
        check_same(run_dir, config, identity, FREE)
        predictions = Predictions(run_dir)
        every = list(tasks(datasets, read))
        if todo := [task for task in every if task.key not in predictions.done]:
            began = time.monotonic()
            asyncio.run(_ask(read, todo, predictions, len(every)))
            seconds = time.monotonic() - began
            rate = f"{len(todo) / seconds:.1f} per second"
            print(f"{len(todo):,} questions in {seconds:.0f} s, {rate}", file=sys.stderr)
        predictions.sort(task.key for task in every)
        verdicts = asyncio.run(judge_all(read.judge, run_dir))
        scores = {
            prediction_key(each): each.metrics | judge_metrics(verdicts, each)
            for each in read_predictions(run_dir)
        }
        summary = summarise(scores, identity)
        write_summary(run_dir, summary)
        write_report(run_dir)
        return Outcome(markdown(summary["results"]), _fault(run_dir))


def _fault(run_dir: Path) -> str | None:
    """Warn of failed questions and searches; return the message instead if all of one kind failed."""
    for what, reasons in failures(run_dir).items():
        if failed := [reason for reason in reasons if reason is not None]:
            named = ", ".join(failed[:NAMED]) + (", ..." if len(failed) > NAMED else "")
            message = f"{len(failed)} of {len(reasons)} {what} failed: {named}"
            if len(failed) == len(reasons):
                return f"{message}. The figures say nothing about the model; run again to ask again"
            print(f"WARNING: {message}", file=sys.stderr)
    return None


async def _ask(config: EvaluationConfig, todo: list[Task], predictions: Predictions, total: int) -> None:
    client = RetrieverClient(config.retriever)
    search = _ending(client)
    right = sum(row["em"] for row in predictions.done.values())
    try:
        if set(config.methods) - {"direct"}:
            with suppress(SearchError):  # before a model is loaded; what fails for one question alone may
                await search(todo[0].question.question)
        async with opened(config.engine, config.sampling, config.protocol.template_options) as engine:
            with Progress(total=total, initial=len(predictions.done), unit="question", smoothing=0.05) as bar:

                def finished(trajectory: Trajectory, seconds: float) -> None:
                    nonlocal right
                    predictions.add(trajectory, seconds)
                    right += trajectory.metrics["em"]
                    note = f"EM {right / len(predictions.done):.3f}, "
                    bar.count(trajectory.metadata.get("error"), note)

                await Runner(config, engine, search).run(todo, finished)
    finally:
        await client.close()


def _ending(client: RetrieverClient) -> SearchFunction:
    """The client's search; a failure that every search would share ends the evaluation."""

    async def search(query: str, top_k: int | None = None) -> list[Passage]:
        try:
            return await client(query, top_k)
        except SearchError as error:
            if error.lasting:
                raise EvaluationError(f"every search would fail: {error}") from error
            raise

    return search


def _identity(config: EvaluationConfig, datasets: dict[str, list[Question]]) -> dict[str, Any]:
    """What the figures depend on besides the configuration; part of metrics.json."""
    return {
        **model_identity(config.engine),
        "retriever": _retriever_identity(config) if set(config.methods) - {"direct"} else None,
        "questions": {label: len(questions) for label, questions in datasets.items()},
        "questions_sha256": {label: digest(questions) for label, questions in datasets.items()},
    }


def _warn_of_another_index(config: EvaluationConfig, retriever: dict[str, Any] | None) -> None:
    """Warn if the policy learned its queries with another kind of index or another encoder."""
    trained = trained_retriever(config.engine.model)
    if retriever and trained and "encoder" in retriever and trained["encoder"] != retriever["encoder"]:
        there, then = (f"{each['index']} ({each['encoder'] or 'words'})" for each in (retriever, trained))
        warn(f"the retriever's index is {there}; the policy was trained with {then}")


def _retriever_identity(config: EvaluationConfig) -> dict[str, Any]:
    """What the retriever reports about itself. Raises EvaluationError if nothing answers."""
    url = config.retriever.url
    try:
        health = asyncio.run(_health(url, config.retriever.timeout))
    except ServerError as error:
        if error.status == 503:
            raise EvaluationError(f"the retriever at {url} is still loading: try again later") from error
        if error.status is None:
            raise EvaluationError(f"no retriever answers at {url}: {error}; is it running?") from error
        health = None
    if not isinstance(health, dict):
        return {"index": "unknown"}  # Search-R1's server has no /health
    return {key: health.get(key) for key in IDENTITY} | {"top_k": config.retriever.top_k}


async def _health(url: str, timeout: float) -> Any:
    server = JsonServer(url, timeout, deadline=0)
    try:
        return await server.call("/health")
    finally:
        await server.close()
