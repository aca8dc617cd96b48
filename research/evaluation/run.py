"""One evaluation in one folder: config.yaml, predictions.jsonl, timings.jsonl, metrics.json, report.html.

Started again with the same folder it goes on: no question is asked twice.
"""

import asyncio
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from research.evaluation.config import EvaluationConfig, EvaluationError, read_config
from research.evaluation.datasets import read_datasets, tasks
from research.evaluation.engines import opened
from research.evaluation.folder import Free, check_same
from research.evaluation.judge import judge_all, judge_metrics, read_verdicts
from research.evaluation.predictions import Predictions, key_of, read_predictions
from research.evaluation.report import write_report
from research.evaluation.runner import Runner, Task
from research.evaluation.summary import markdown, summarise, write_summary
from research.processes import alone_in
from research.retriever_client import RetrieverClient
from research.trajectory import Trajectory

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


def evaluate(config: DictConfig, run_dir: Path) -> str:
    """Do the evaluation, or the rest of it; the table of its figures, as Markdown.

    Raises EvaluationError with the one-line reason. What is finished stays, whatever happens.
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


def _conclude(run_dir: Path, config: EvaluationConfig, identity: dict[str, Any]) -> str:
    """Write metrics.json and report.html from the other files; the table."""
    verdicts = read_verdicts(run_dir)
    scores = {
        key_of(each): each.metrics | judge_metrics(config.judge, verdicts, each)
        for each in read_predictions(run_dir)
    }
    summary = summarise(scores, identity)
    write_summary(run_dir, summary)
    write_report(run_dir)
    return markdown(summary["results"])


async def _ask(config: EvaluationConfig, todo: list[Task], predictions: Predictions, total: int) -> None:
    search = RetrieverClient(config.retriever)
    try:
        async with opened(config.engine, config.sampling) as engine:
            with _Progress(predictions, total) as progress:
                await Runner(config, engine, search).run(todo, progress.finished)
    except* EvaluationError as group:
        raise _first(group) from None
    finally:
        await search.close()


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


def _identity(config: EvaluationConfig, datasets: dict[str, list[Any]]) -> dict[str, Any]:
    """What the figures hang on, besides the configuration: stands in metrics.json."""
    return {
        "model": config.engine.model,
        "retriever": _retriever_identity(config) if set(config.methods) - {"direct"} else None,
        "questions": {label: len(questions) for label, questions in datasets.items()},
    }


def _retriever_identity(config: EvaluationConfig) -> dict[str, Any]:
    """What the retriever says of itself; only that it answers, of one that says nothing."""
    url = config.retriever.url.rstrip("/")
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=config.retriever.timeout) as reply:
            said = json.load(reply)
    except urllib.error.HTTPError as error:
        if error.code == 503:
            raise EvaluationError(f"the retriever at {url} is still loading: try again later") from error
        return {"index": "unknown"}  # Search-R1's server has no /health
    except OSError as error:
        raise EvaluationError(f"no retriever answers at {url}: {error}; is it running?") from error
    except ValueError:
        return {"index": "unknown"}
    names = ("index", "encoder", "dimension", "count", "fingerprint")
    return {name: said.get(name) for name in names} | {"top_k": config.retriever.top_k}


def _tell_rate(asked: int, seconds: float) -> None:
    if asked:
        print(f"{asked:,} questions in {seconds:.0f} s, {asked / seconds:.1f} a second", file=sys.stderr)
